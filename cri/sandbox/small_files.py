"""The small files in which objects are written down: read and written so that nothing in their place can hurt.

A file may be missing, torn, enormous, or be a FIFO, a link or a directory by now. Standard library only: wardens use it.
Every function blocks, as long as a local disk does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

LIMIT = 64 * 1024 * 1024
"""Bytes; a file of ours is never larger, as what clients ask for is bounded (gRPC)."""

NEW = ".new"
"""What the names of files end with that `write` has not finished."""

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read(path: str | Path, limit: int = LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises OSError: FileNotFoundError, EINVAL for another type, EFBIG, ELOOP for a link.
    """
    descriptor = os.open(path, _READ)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        if found.st_size > limit:
            raise OSError(errno.EFBIG, f"has {found.st_size} bytes, more than {limit}", str(path))
        parts = []
        while part := os.read(descriptor, 1024 * 1024):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def write(path: str | Path, data: bytes, *, sync: bool = False) -> None:
    """Put a file into place as a whole; a crash leaves the old one or the new one. With `sync`, a power cut does too.

    A directory in its place is moved out of the way first, under its name with `.aside`. Raises OSError, with nothing left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{NEW}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a process that died; its number has come round
    descriptor = os.open(temporary, _MAKE, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            temporary.replace(path)
        except IsADirectoryError:
            path.rename(path.with_name(f"{path.name}.aside.{os.getpid()}"))
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_directory(path.parent)


def sync_directory(path: str | Path) -> None:
    """Have the names in a directory on disk: fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
