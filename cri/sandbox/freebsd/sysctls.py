"""Variables of sysctl(3), decoded; a variable that this kernel has not is None."""

from __future__ import annotations

import errno
import sys

from cri.sandbox.freebsd.calls import Calls


def text(calls: Calls, name: str) -> str | None:
    """A string. Raises OSError, but not for a variable that is not there."""
    value = _read(calls, name)
    return None if value is None else value.rstrip(b"\0").decode(errors="replace").strip()


def number(calls: Calls, name: str) -> int | None:
    """A number of any width; a boolean is 0 or 1. Raises OSError, but not for a variable that is not there."""
    value = _read(calls, name)
    return None if value is None else int.from_bytes(value, sys.byteorder, signed=True)


def _read(calls: Calls, name: str) -> bytes | None:
    try:
        return calls.sysctl(name)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
