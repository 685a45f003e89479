"""Files of cgroups: read and written whole, with the error of the kernel and the name of the file in it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from cri.sandbox.host import HostError

_MOST = 1 << 16
"""Bytes that one file may have."""


def write(path: str, value: str, directory: int | None = None) -> None:
    """Write a value, or nothing but a newline for an empty one, to a file (of an open directory). Raises HostError."""
    write_each(path, (value,), directory)


def write_each(path: str, values: Iterable[str], directory: int | None = None) -> None:
    """Write one value after the other, as `write` does. Raises HostError."""
    value = ""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            for value in values:
                os.write(fd, value.encode() or b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(f"write {value} to", path, error) from error


def read(path: str) -> str:
    """What a file says, without the newline at its end. Raises HostError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _MOST).decode().strip()
        finally:
            os.close(fd)
    except OSError as error:
        raise failed("read", path, error) from error


def fields(path: str, directory: int | None = None) -> dict[str, int]:
    """The numbers of a file of names and numbers; none where the controller is missing."""
    pairs = (line.split() for line in (_content(path, directory) or b"").splitlines())
    return {pair[0].decode(): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def number(path: str) -> int | None:
    """The number in a file; None for `max`, or where the controller is missing."""
    text = (_content(path) or b"").strip()
    return int(text) if text.isdigit() else None


def _content(path: str, directory: int | None = None) -> bytes | None:
    """What is in a file of a few kilobytes, by as few calls as can be: a dozen are read of each container."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.read(descriptor, _MOST)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def failed(operation: str, path: str, error: OSError) -> HostError:
    """The kernel's error, and where."""
    return HostError(operation, f"cgroup {path}", error.strerror or str(error), error.errno)
