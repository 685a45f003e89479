"""What a disk has refused, in words that tell which disk it is and what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from cri.errors import CRIError, InternalError, ResourceExhaustedError

_FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "has no more room for us: the quota is used up"}
_BROKEN = {
    errno.EROFS: "is read-only; see the kernel's log for why, and mount it anew",
    errno.EIO: "fails; see the kernel's log",
    getattr(errno, "EUCLEAN", errno.EIO): "has a damaged filesystem; check it",
}

_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
}


def refusal(error: BaseException, what: str, directory: Path) -> CRIError | None:
    """The error to answer with when `what` failed for the sake of the disk that `directory` is on; None if it did not.

    Blocks.
    """
    for cause in _causes(error):
        number = _number(cause)
        if number in _FULL:
            reason = _FULL[number]
            return ResourceExhaustedError(
                f"{what}: the disk of {directory}, mounted on {_mount_point(directory)}, {reason} ({error}); "
                "make room, or remove images that nothing uses"
            )
        if number in _BROKEN:
            reason = _BROKEN[number]
            return InternalError(
                f"{what}: the disk of {directory}, mounted on {_mount_point(directory)}, {reason} ({error})"
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _number(error: BaseException) -> int | None:
    if isinstance(error, sqlite3.Error):
        code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
        return _SQLITE.get(code & 0xFF)  # above are details
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def _mount_point(path: Path) -> str:
    while not os.path.ismount(path) and path != path.parent:
        path = path.parent
    return str(path)
