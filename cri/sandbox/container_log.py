"""Opens the file that a container's output goes to.

The daemon does it, in a thread that may hang alone, and hands the descriptor to the warden: what is in the file's place, or a
disk that does not answer, must not hold up a whole pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
from collections.abc import AsyncGenerator
from pathlib import PurePosixPath

from cri.sandbox.host import HostError
from cri.sandbox.warden.logs import LOG_FLAGS, LOG_MODE, check_log
from cri.threads import in_own_thread

PATIENCE = 10.0
"""Seconds that a disk may take."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.asynccontextmanager
async def opened(directory: str, path: str) -> AsyncGenerator[int | None, None]:
    """The log's descriptor as long as the block takes: see `open_log`."""
    descriptor = await open_log(directory, path)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


async def open_log(directory: str, path: str) -> int | None:
    """A descriptor of the log, made if it is not there; None without a path.

    `path` lies below the pod's log `directory`; no link is followed in between. Raises HostError.
    """
    if not path:
        return None
    opening = asyncio.ensure_future(in_own_thread(_open, directory, path))
    try:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.shield(opening)
    except BaseException as error:
        opening.add_done_callback(_close)  # whenever it is through, nobody wants it any more
        if isinstance(error, TimeoutError):
            raise HostError("open log", path, f"its disk has not answered for {PATIENCE:g} s") from None
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise HostError("open log", path, reason, error.errno) from error
        raise


def _open(directory: str, path: str) -> int:
    below = PurePosixPath(path).relative_to(posixpath.normpath(directory) if directory else "/")
    *parents, name = below.parts or (".",)  # which open(2) says is a directory
    where = os.open(directory or "/", _DIRECTORY)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=where)
            os.close(where)
            where = inner
        descriptor = os.open(name, LOG_FLAGS, LOG_MODE, dir_fd=where)
    finally:
        os.close(where)
    try:
        check_log(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
