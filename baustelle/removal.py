"""Removes trees that somebody else has filled: however deep, whatever flags they carry."""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from baustelle import fileflags

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(
    directory: str | bytes | Path, *, dir_fd: int | None = None, check: Callable[[], None] = lambda: None
) -> None:
    """Remove a directory (relative to the open directory `dir_fd`) with all its content; succeeds if it is gone. Blocks.

    Directories are taken up to the top one by one, so neither the stack nor descriptors run out on what a container has
    nested. (Only where a disk has no room for another name, they are removed in their places.) No link is followed, and
    nothing removed of a filesystem that is mounted in there (EBUSY), as far as its device tells. File flags of FreeBSD
    are cleared before. `check` is called before each file, to raise what shall end the removal half-way.
    Raises OSError.
    """
    try:
        top = os.open(directory, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        _stay_on_device(os.stat("..", dir_fd=top).st_dev, top, directory)
        numbers = itertools.count()
        while _empty(top, None, numbers, check):
            for name in os.listdir(top):  # noqa: PTH208 - by descriptor, so that no name can be exchanged
                below = os.open(name, _DIRECTORY, dir_fd=top)
                try:
                    _stay_on_device(os.fstat(top).st_dev, below, name)
                    _empty(below, top, numbers, check)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(directory, dir_fd=dir_fd)


def unlink(name: str | bytes, directory: int) -> None:
    """Remove `name`, which is no directory, from an open one, against its flags if need be. Raises OSError."""
    _against_flags(name, directory, lambda: os.unlink(name, dir_fd=directory))


def _empty(directory: int, top: int | None, numbers: Iterator[int], check: Callable[[], None]) -> bool:
    """Unlink all files in a directory, and move what is none to `top`. Whether any directory is left in here."""
    fileflags.unprotect(directory)
    left = False
    with os.scandir(directory) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in entries:
        check()
        if not is_directory:
            unlink(name, directory)
        elif top is None:
            left = True
        else:
            _move_up(name, directory, top, numbers)
    return left


def _stay_on_device(device: int, below: int, name: str | bytes | Path) -> None:
    if os.fstat(below).st_dev != device:
        raise OSError(errno.EBUSY, "a filesystem is mounted on it", os.fsdecode(name))


def _move_up(name: str, directory: int, top: int, numbers: Iterator[int]) -> None:
    while True:
        new_name = f"{next(numbers)}.removed"
        try:
            _against_flags(
                name,
                directory,
                lambda new_name=new_name: os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=top),  # type: ignore[misc]
            )
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                remove_tree(name, dir_fd=directory)  # where it is; that makes room for the next
                return
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise  # else the name is taken
        else:
            return


def _against_flags(name: str | bytes, directory: int, operation: Callable[[], None]) -> None:
    try:
        operation()
    except PermissionError:
        if not fileflags.unprotect_name(directory, name) & fileflags.PROTECTING:
            raise
        operation()
