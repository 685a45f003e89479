"""Copies file trees whole: owners, modes, times, extended attributes, hard links, devices, FIFOs, holes left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from cri.sandbox.spec import DiskUsage

_CHUNK = 16 * 1024 * 1024


def copy_tree(source: str, target: str) -> None:
    """Copy the content and the attributes of the directory `source` to the directory `target`, which exists. Blocks.

    Raises OSError.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _copy_directory(source_fd, target_fd, {}, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def disk_usage(directory: str) -> DiskUsage:
    """What a tree takes on disk, hard links counted once. Files that vanish meanwhile do not count. Blocks."""
    blocks = 0
    seen: set[tuple[int, int]] = set()

    def add(found: os.stat_result) -> None:
        nonlocal blocks
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            blocks += found.st_blocks

    pending = [directory]
    while pending:
        folder = pending.pop()
        try:
            add(os.lstat(folder))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        add(entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
    return DiskUsage(bytes=blocks * 512, inodes=len(seen))


def _copy_directory(
    source: int, target: int, links: dict[tuple[int, int], str], top: int, path: str = ""
) -> None:
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        here = f"{path}{name}"
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            outer = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
            try:
                _copy_directory(inner, outer, links, top, f"{here}/")
            finally:
                os.close(inner)
                os.close(outer)
            continue
        identity = (found.st_dev, found.st_ino)
        if identity in links:
            os.link(links[identity], name, src_dir_fd=top, dst_dir_fd=target, follow_symlinks=False)
            continue
        if found.st_nlink > 1:
            links[identity] = here
        _copy_other(name, found, source, target)
    _copy_attributes(source, target, os.fstat(source))


def _copy_other(name: str, found: os.stat_result, source: int, target: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISREG(found.st_mode):
        _copy_file(name, found, source, target)
        return
    elif stat.S_ISSOCK(found.st_mode):
        return  # belongs to a process that is not there
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(name: str, found: os.stat_result, source: int, target: int) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            _copy_content(reading, writing)
            _copy_attributes(reading, writing, found)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_content(reading: int, writing: int) -> None:
    copy: Callable[[], int] = lambda: os.copy_file_range(reading, writing, _CHUNK)  # noqa: E731
    try:
        while copy():
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        while os.sendfile(writing, reading, None, _CHUNK):
            pass


def _copy_attributes(source: int, target: int, found: os.stat_result) -> None:
    os.fchown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))  # after chown, which clears setuid
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
