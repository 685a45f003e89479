"""Copies a file with its owner, mode, times, extended attributes, ACLs and holes."""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator

from baustelle import acls, xattrs

_CHUNK = 16 * 1024 * 1024
_READ_CHUNK = 1024 * 1024
_BLOCK = 512
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_file(
    name: str | bytes,
    found: os.stat_result,
    source: int,
    target: int,
    new_name: str | bytes,
    check: Callable[[], None],
) -> None:
    """Copy `name` in the open directory `source`, which is none and of which `found` tells, to `new_name` in `target`.

    No link is followed. `check` is called for each piece of data, to raise what shall end the work. Raises OSError.
    """
    if stat.S_ISREG(found.st_mode):
        _copy_regular(name, found, source, target, new_name, check)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(os.fsencode(name), dir_fd=source), new_name, dir_fd=target)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(new_name, 0o600, dir_fd=target)
    else:
        os.mknod(new_name, found.st_mode, found.st_rdev, dir_fd=target)
    os.chown(new_name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(new_name, stat.S_IMODE(found.st_mode), dir_fd=target)
    if sys.platform == "linux":
        for attribute in xattrs.names_on_name(source, name):
            xattrs.set_on_name(target, new_name, attribute, xattrs.get_on_name(source, name, attribute))
    os.utime(new_name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_regular(
    name: str | bytes,
    found: os.stat_result,
    source: int,
    target: int,
    new_name: str | bytes,
    check: Callable[[], None],
) -> None:
    reading = os.open(name, _FILE, dir_fd=source)
    try:
        writing = os.open(new_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            for start, end in _extents(reading, found):
                _copy_extent(reading, writing, start, end, check)
            os.ftruncate(writing, found.st_size)
            copy_attributes(reading, writing, found)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _extents(fd: int, found: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where a file has data: (start, end). What lies between are holes."""
    if found.st_blocks * _BLOCK >= found.st_size:
        if found.st_size:
            yield 0, found.st_size
        return
    end = 0
    while end < found.st_size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _copy_extent(reading: int, writing: int, start: int, end: int, check: Callable[[], None]) -> None:
    try:
        while start < end:
            check()
            copied = os.copy_file_range(reading, writing, min(end - start, _CHUNK), start, start)
            if not copied:
                return  # the file has become shorter
            start += copied
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        while start < end and (data := os.pread(reading, min(end - start, _READ_CHUNK), start)):
            check()
            start += os.pwrite(writing, data, start)


def copy_attributes(source: int, target: int, found: os.stat_result) -> None:
    """Give an open file or directory all that another has beside its data, of which `found` tells. Raises OSError."""
    os.fchown(target, found.st_uid, found.st_gid)
    for name in xattrs.names_on_fd(source):
        xattrs.set_on_fd(target, name, xattrs.get_on_fd(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))  # after chown, which clears setuid
    if sys.platform.startswith("freebsd"):
        acls.copy(source, target, directory=stat.S_ISDIR(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
