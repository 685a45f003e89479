"""Warnings of a warden, for the daemon's journal."""

from __future__ import annotations

import os


def warn(text: str) -> None:
    """Write a line to stderr, which a warden has from the daemon that made it.

    That daemon may be gone, and its end of the pipe with it: then there is nobody left to tell.
    """
    try:
        os.write(2, f"cri-jails warden: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        return
