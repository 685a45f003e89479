"""Copies file trees whole: owners, modes, times, extended attributes, ACLs, file flags, hard links, devices, FIFOs, holes.

Links, devices and FIFOs keep all but extended attributes and ACLs, and sockets are left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from baustelle import acls, descent, fileflags, xattrs
from baustelle.descent import Descent
from cri.sandbox.spec import DiskUsage

_CHUNK = 16 * 1024 * 1024
_READ_CHUNK = 1024 * 1024
_BLOCK = 512
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: str, target: str, check: Callable[[], None] = lambda: None) -> None:
    """Copy the content and the attributes of the directory `source` to the directory `target`, which exists. Blocks.

    Nothing in the copy is a hard link to the source. File flags that the target's file system does not know are left
    out. However deep the tree is, few descriptors are needed. `check` is called before each file, to raise what shall
    end the copy half-way. Raises OSError.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy = _Copy(target_fd, check)
            copy.run(source_fd)
            copy.finish()
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def disk_usage(directory: str, check: Callable[[], None] = lambda: None) -> DiskUsage:
    """What a tree takes on disk, hard links counted once. Files that vanish meanwhile do not count. Blocks.

    `check` as for `copy_tree`. Raises OSError.
    """
    blocks = 0
    seen: set[tuple[int, int]] = set()

    def add(found: os.stat_result) -> None:
        nonlocal blocks
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            blocks += found.st_blocks

    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return DiskUsage(0, 0)
    try:
        for fd, files in descent.walk(top):
            add(os.fstat(fd))
            for entry in files:
                check()
                with contextlib.suppress(FileNotFoundError):
                    add(entry.stat(follow_symlinks=False))
    finally:
        os.close(top)
    return DiskUsage(bytes=blocks * _BLOCK, inodes=len(seen))


@dataclass(slots=True)
class _Copy:
    """A copy under way."""

    top: int
    check: Callable[[], None]
    links: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    """Where in the copy the first name of a file with several is: its directory's path, and itself."""
    flags: list[tuple[str, str, int]] = field(default_factory=list)
    """Of those files, for the end: an immutable file gets no more links."""

    def run(self, source: int) -> None:
        """Copy all."""
        with Descent(source) as here, Descent(self.top) as there:
            levels = [("", self._files(here.fd, there.fd, ""))]
            while levels:
                path, below = levels[-1]
                if below:
                    name = below.pop()
                    os.mkdir(name, 0o700, dir_fd=there.fd)
                    here.down(name)
                    there.down(name)
                    inner = f"{path}/{name}"
                    levels.append((inner, self._files(here.fd, there.fd, inner)))
                    continue
                _copy_attributes(here.fd, there.fd, os.fstat(here.fd))
                flags = fileflags.of(os.fstat(here.fd))
                levels.pop()
                if levels:
                    os.close(here.up())
                    os.close(there.up())
                if flags:
                    _set_flags(there.fd, path.rpartition("/")[2] or ".", flags)

    def finish(self) -> None:
        """Set the flags that had to wait."""
        for directory, name, flags in self.flags:
            fd = descent.open_far(self.top, directory)
            try:
                _set_flags(fd, name, flags)
            finally:
                os.close(fd)

    def _files(self, source: int, target: int, path: str) -> list[str]:
        """Copy the files of a directory; the names of the directories in it."""
        below = []
        for name in os.listdir(source):
            self.check()
            found = os.stat(name, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                below.append(name)
            elif (found.st_dev, found.st_ino) in self.links:
                self._link(*self.links[found.st_dev, found.st_ino], name, target)
            elif not stat.S_ISSOCK(found.st_mode):  # which belongs to a process that is not there
                _copy_file(name, found, source, target, self.check)
                self._finish_file(name, found, target, path)
        return below

    def _link(self, directory: str, first: str, name: str, target: int) -> None:
        fd = descent.open_far(self.top, directory)
        try:
            os.link(first, name, src_dir_fd=fd, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(fd)

    def _finish_file(self, name: str, found: os.stat_result, target: int, path: str) -> None:
        flags = fileflags.of(found)
        if found.st_nlink > 1:
            self.links[found.st_dev, found.st_ino] = path, name
            if flags:
                self.flags.append((path, name, flags))
        elif flags:
            _set_flags(target, name, flags)


def _copy_file(name: str, found: os.stat_result, source: int, target: int, check: Callable[[], None]) -> None:
    if stat.S_ISREG(found.st_mode):
        _copy_regular(name, found, source, target, check)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(name, 0o600, dir_fd=target)
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_regular(
    name: str, found: os.stat_result, source: int, target: int, check: Callable[[], None]
) -> None:
    reading = os.open(name, _FILE, dir_fd=source)
    try:
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            for start, end in _extents(reading, found):
                _copy_extent(reading, writing, start, end, check)
            os.ftruncate(writing, found.st_size)
            _copy_attributes(reading, writing, found)
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


def _copy_attributes(source: int, target: int, found: os.stat_result) -> None:
    os.fchown(target, found.st_uid, found.st_gid)
    for name in xattrs.names_on_fd(source):
        xattrs.set_on_fd(target, name, xattrs.get_on_fd(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))  # after chown, which clears setuid
    if sys.platform.startswith("freebsd"):
        acls.copy(source, target, directory=stat.S_ISDIR(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _set_flags(directory: int, name: str, flags: int) -> None:
    try:
        fileflags.set_on_name(directory, name, flags)
    except OSError as error:
        if error.errno not in fileflags.NOT_STORABLE:
            raise
