"""How values travel to and from FreeBSD's kernel as bytes and text: jail parameters, mount options, rctl(8)'s lists."""

from __future__ import annotations

import errno
import sys

from cri.sandbox.freebsd.calls import JailValue

_SIZES = {"host.hostid": 8}
"""Bytes of the jail parameters whose numbers are not of C's type int (jail(8))."""


def c_string(value: str) -> bytes:
    """Text as C has it. Raises OSError if it has a NUL."""
    data = value.encode(errors="surrogateescape")
    if b"\0" in data:
        raise OSError(errno.EINVAL, "a NUL byte inside", value)
    return data + b"\0"


def c_integer(value: int, size: int = 4) -> bytes:
    """A number as C has it. Raises OSError if it does not fit."""
    try:
        return value.to_bytes(size, sys.byteorder, signed=True)
    except OverflowError:
        raise OSError(errno.EINVAL, f"more than {size} bytes can hold", str(value)) from None


def jail_option(name: str, value: JailValue) -> tuple[str, bytes | None]:
    """A jail parameter as jail_set(2) takes it: a boolean has no value, its name says it (`allow.nomount`)."""
    if isinstance(value, bool):
        if not value:
            parent, dot, last = name.rpartition(".")
            name = f"{parent}{dot}no{last}"
        return name, None
    if isinstance(value, int):
        return name, c_integer(value, _SIZES.get(name, 4))
    return name, c_string(value)


def rctl_rules(text: str) -> list[str]:
    """The rules that rctl_get_rules(2) answers."""
    return text.split(",") if text else []


def rctl_amounts(text: str) -> dict[str, int]:
    """The usage that rctl_get_racct(2) answers, by resource."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {resource: int(amount) for resource, _, amount in pairs}
