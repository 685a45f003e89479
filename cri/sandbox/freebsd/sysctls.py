"""Variables of sysctl(3) as text and numbers; to those who only look, one that this kernel has not is None."""

from __future__ import annotations

import errno
import sys

from cri.sandbox.freebsd.calls import Calls

STRING = 3
INTEGERS = {
    2: (4, True),  # int
    4: (8, True),
    6: (4, False),
    7: (8, True),  # long, as on all that we run on
    8: (8, False),
    9: (8, False),
    10: (1, False),  # also bool
    11: (2, False),
    12: (1, True),
    13: (2, True),
    14: (4, True),
    15: (4, False),
}
"""Of the types of variables (CTLTYPE_*, sys/sysctl.h) those that are numbers: their bytes, and whether they are signed."""


def to_text(kind: int, value: bytes) -> str:
    """The bytes of a variable as sysctl(8) shows them; several numbers are set apart by spaces. Raises OSError."""
    if kind == STRING:
        return value.rstrip(b"\0").decode(errors="surrogateescape")
    size, signed = _integer(kind)
    numbers = (value[at : at + size] for at in range(0, len(value), size))
    return " ".join(str(int.from_bytes(each, sys.byteorder, signed=signed)) for each in numbers)


def from_text(kind: int, text: str) -> bytes:
    """The reverse, as sysctl(8) reads it: numbers may be hexadecimal or octal. Raises OSError."""
    try:
        if kind == STRING:
            return text.encode(errors="surrogateescape") + b"\0"
        size, signed = _integer(kind)
        return b"".join(_number(each).to_bytes(size, sys.byteorder, signed=signed) for each in text.split())
    except (ValueError, OverflowError) as error:
        raise OSError(errno.EINVAL, f"{text!r} does not fit: {error}") from None


def _integer(kind: int) -> tuple[int, bool]:
    if kind not in INTEGERS:
        raise OSError(errno.EOPNOTSUPP, "it is neither a number nor text")
    return INTEGERS[kind]


def _number(text: str) -> int:
    """A number with C's prefixes (strtoimax(3))."""
    digits = text.lstrip("+-")
    return int(text, 8 if len(digits) > 1 and digits.isdigit() and digits[0] == "0" else 0)


def text(calls: Calls, name: str) -> str | None:
    """A string. Raises OSError, but not for a variable that is not there."""
    value = raw(calls, name)
    return None if value is None else value.rstrip(b"\0").decode(errors="replace").strip()


def number(calls: Calls, name: str) -> int | None:
    """A number of any width; a boolean is 0 or 1. Raises OSError, but not for a variable that is not there."""
    value = raw(calls, name)
    return None if value is None else int.from_bytes(value, sys.byteorder, signed=True)


def raw(calls: Calls, name: str) -> bytes | None:
    """What the kernel gives. Raises OSError, but not for a variable that is not there."""
    try:
        return calls.sysctl(name)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
