"""The bytes under a carrier: a TCP or TLS connection after its upgrade, or a WebSocket that bytes are tunnelled through."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

READ_SIZE = 256 * 1024
WRITE_ROOM = 512 * 1024
"""Bytes that wait for the client before a writer has to wait."""

STALL = 60.0
"""Seconds without progress after which a client that still has something to read is given up."""

WRITE_STEP = 16 * 1024
"""Bytes of room that a waiting writer is woken for. A quarter of all of it, as asyncio has it, takes a slow client long."""

LINGER = 5.0
"""Seconds in which a client may close its side, before the connection is closed."""


class Wire(Protocol):
    """A stream of bytes in both directions, with back pressure in both."""

    async def read(self) -> bytes:
        """Some bytes from the client; empty when it has gone, however."""

    async def write(self, *parts: bytes) -> None:
        """Send the parts, one after the other, and wait while the client has no room. Raises ConnectionError."""

    async def close(self) -> None:
        """Send what is waiting for as long as the client reads, then close, within `LINGER` seconds."""

    def abort(self) -> None:
        """Close at once."""


class SocketWire:
    """A TCP or TLS connection of the event loop."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes = b""
    ) -> None:
        """`early` is what came with the request's head, and belongs to what follows it."""
        self._reader = reader
        self._writer = writer
        self._early = early
        writer.transport.set_write_buffer_limits(high=WRITE_ROOM, low=WRITE_ROOM - WRITE_STEP)

    async def read(self) -> bytes:
        """Some bytes from the client; empty when it has gone."""
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            return await self._reader.read(READ_SIZE)
        except OSError:  # ssl.SSLError too: for whoever reads, it is the end
            return b""

    async def write(self, *parts: bytes) -> None:
        """Send the parts. Raises ConnectionError."""
        self._writer.writelines(parts)
        try:
            await self._writer.drain()
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if self._writer.transport.is_closing():
            raise ConnectionError("the connection was closed while this was being sent")

    async def close(self) -> None:
        """Send what is waiting, and the end; read on until the client has closed, as a reset would take from it what it has not read yet."""
        with contextlib.suppress(OSError, TimeoutError):
            await self._flush()
            async with asyncio.timeout(LINGER):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                    while await self._reader.read(READ_SIZE):
                        pass
                else:  # TLS: closing sends close_notify
                    self._writer.close()
                    await self._writer.wait_closed()
        self.abort()

    async def _flush(self) -> None:
        """Wait as long as the client takes something. Raises OSError, TimeoutError."""
        transport = self._writer.transport
        transport.set_write_buffer_limits(high=0)
        left = -1
        while (waiting := transport.get_write_buffer_size()) != left:
            left = waiting
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALL):
                    await self._writer.drain()
                    return
        raise TimeoutError

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()
