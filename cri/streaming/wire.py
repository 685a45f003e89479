"""The bytes under a carrier: a TCP or TLS connection after its upgrade, or a WebSocket that bytes are tunnelled through."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

READ_SIZE = 256 * 1024
WRITE_ROOM = 512 * 1024
"""Bytes that wait for the client before a writer has to wait."""

LINGER = 5.0
"""Seconds in which a client may still read what it was sent last, before the connection is closed."""


class Wire(Protocol):
    """A stream of bytes in both directions, with back pressure in both."""

    async def read(self) -> bytes:
        """Some bytes from the client; empty when it has gone, however."""

    async def write(self, *parts: bytes) -> None:
        """Send the parts, one after the other, and wait while the client has no room. Raises ConnectionError."""

    async def close(self) -> None:
        """Send what is waiting, then close. Takes up to `LINGER` seconds; nothing sent before is lost to a client that reads."""

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
        writer.transport.set_write_buffer_limits(high=WRITE_ROOM)

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

    async def close(self) -> None:
        """Send what is waiting, and the end; read on until the client has closed, as a reset would take from it what it has not read yet."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                    while await self._reader.read(READ_SIZE):
                        pass
                else:  # TLS: closing sends what is waiting, and close_notify after it
                    self._writer.close()
                    await self._writer.wait_closed()
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()
