"""Pipes, terminals and sockets at a session's other side, on the event loop and with back pressure."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import Callable
from typing import Any

CHUNK = 256 * 1024
"""Bytes that are read at a time, where nothing says otherwise."""

_PIPE_SIZE = 1024 * 1024
_F_SETPIPE_SZ = 1031


def pipe() -> tuple[int, int]:
    """The ends of a pipe, reader first, with room for much at once where the kernel lets us say so (F_SETPIPE_SZ of fcntl(2))."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if sys.platform == "linux":
        # More than the node's fs.pipe-max-size? Then it is as big as pipes are.
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, _F_SETPIPE_SZ, _PIPE_SIZE)
    return reader, writer


class _Descriptor:
    """A descriptor that is this object's own from now on."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Close it; succeeds if repeated. Nobody may be waiting for it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Source(_Descriptor):
    """What is read."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._patience: float | None = None
        self._waiting: asyncio.Future[None] | None = None

    async def read(self, limit: int = CHUNK) -> bytes:
        """At most so many bytes; none at the end. One reader at a time."""
        while True:
            try:
                data = os.read(self._fd, limit)
            except BlockingIOError:
                patience = self._patience
                if not await self._readable(patience) and patience is not None:
                    return b""
            except OSError:
                # EIO: the last process has closed the terminal. ECONNRESET: the other end is gone.
                return b""
            else:
                await asyncio.sleep(0)  # a fast writer must not have the loop for itself
                return data

    def expect_end(self, patience: float) -> None:
        """Whoever was to write has ended: from now on `patience` seconds without a byte are the end, too."""
        self._patience = patience
        if self._waiting is not None:
            _wake(self._waiting)

    async def _readable(self, patience: float | None) -> bool:
        self._waiting = self._loop.create_future()
        try:
            return await _ready(
                self._loop.add_reader, self._loop.remove_reader, self._fd, self._waiting, patience
            )
        finally:
            self._waiting = None


class Sink(_Descriptor):
    """What is written."""

    async def write(self, data: bytes) -> bool:
        """Write all of it. False if nobody will read it any more. One writer at a time."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await _ready(
                    self._loop.add_writer, self._loop.remove_writer, self._fd, self._loop.create_future()
                )
            except OSError:  # EPIPE; EIO of a terminal that nobody has open
                return False
        return True


async def _ready(
    watch: Callable[..., Any],
    unwatch: Callable[[int], Any],
    fd: int,
    ready: asyncio.Future[None],
    patience: float | None = None,
) -> bool:
    """Wait until a descriptor is ready, or somebody wakes us. False after `patience` seconds."""
    watch(fd, _wake, ready)
    try:
        async with asyncio.timeout(patience):
            await ready
    except TimeoutError:
        return False
    finally:
        unwatch(fd)
    return True


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
