"""What the calls of the FreeBSD binding have in common: errors, text, and lists of options."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cri.sandbox.freebsd._kernel import ffi

_MESSAGE_ROOM = 256


def text_of(buffer: Any) -> str:
    """The text in a buffer, up to its NUL."""
    return os.fsdecode(ffi.string(buffer))


def check(result: int, subject: str) -> int:
    """The result of a call. Raises OSError with errno and the object, if it is -1."""
    if result < 0:
        number = ffi.errno
        raise OSError(number, os.strerror(number), subject)
    return result


class Options:
    """Names and values as jail_set(2), jail_get(2) and nmount(2) take them, with room for the kernel's words."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._values: list[tuple[Any, Any, int]] = []
        self._message = self.put("errmsg", b"", _MESSAGE_ROOM)

    def put(self, name: str, value: bytes | None, room: int = 0) -> Any:
        """Add an option; the buffer that has its value, in which jail_get(2) answers. None is an option without."""
        size = 0 if value is None else max(len(value), room)
        buffer = ffi.NULL if value is None else ffi.new("char[]", size)
        if value:
            ffi.memmove(buffer, value, len(value))
        self._values.append((ffi.new("char[]", name.encode()), buffer, size))
        return buffer

    def call(self, function: Callable[[Any, int, int], int], flags: int) -> int:
        """Make the call."""
        vector = ffi.new("struct iovec[]", 2 * len(self._values))
        for number, (name, buffer, size) in enumerate(self._values):
            vector[2 * number] = (name, len(name))
            vector[2 * number + 1] = (buffer, size)
        result = function(vector, len(vector), flags)
        if result < 0:
            number = ffi.errno
            reason = ffi.string(self._message).decode(errors="replace") or os.strerror(number)
            raise OSError(number, reason, self._subject)
        return result
