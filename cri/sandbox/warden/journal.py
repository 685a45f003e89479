"""Warnings of a warden, for the daemon's journal."""

from __future__ import annotations

import os
import select

_ATOMIC = 512
"""Bytes that a pipe takes at once when it takes any: at least _POSIX_PIPE_BUF (limits.h)."""


def warn(text: str) -> None:
    """Write a line to stderr, which a warden has from the daemon that made it.

    That daemon may be gone, and its end of the pipe with it, or nobody may read any more: then there is nobody left to tell.
    """
    line = f"cri-jails warden: {text}".encode(errors="backslashreplace")[: _ATOMIC - 1] + b"\n"
    try:
        ready = select.poll()
        ready.register(2, select.POLLOUT)
        if ready.poll(0):
            os.write(2, line)
    except OSError:
        return
