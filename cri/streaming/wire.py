"""The bytes under a carrier: a TCP or TLS connection after its upgrade, or a WebSocket that bytes are tunnelled through."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import sys
import termios
from typing import Protocol

READ_SIZE = 256 * 1024
WRITE_ROOM = 512 * 1024
"""Bytes that wait for the client before a writer has to wait."""

WRITE_STEP = 16 * 1024
"""Bytes of room that a waiting writer is woken for. A quarter of all of it, as asyncio has it, takes a slow client long."""

PATIENCE = 60.0
"""Seconds in which a client that has something to read may take nothing."""

LINGER = 5.0
"""Seconds in which a client that has everything may close its side, before the connection is closed."""

_POLL = 0.05
_UNSENT = termios.TIOCOUTQ if sys.platform == "linux" else 0x40046677
"""The ioctl that tells how much the client's kernel has not acknowledged: SIOCOUTQ of tcp(7), FIONWRITE of FreeBSD."""


class Wire(Protocol):
    """A stream of bytes in both directions, with back pressure in both."""

    async def read(self) -> bytes:
        """Some bytes from the client; empty when it has gone, however."""

    async def write(self, *parts: bytes) -> None:
        """Send the parts, one after the other, and wait while the client has no room. Raises ConnectionError."""

    async def close(self) -> None:
        """Send what is waiting for as long as the client takes some, then close within `LINGER` seconds."""

    def abort(self) -> None:
        """Close at once."""


class SocketWire:
    """A TCP or TLS connection of the event loop."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        early: bytes = b"",
        patience: float = PATIENCE,
    ) -> None:
        """`early` is what came with the request's head, and belongs to what follows it.

        A client that takes nothing of what there is for `patience` seconds, or at most twice as long, has gone.
        """
        self._reader = reader
        self._writer = writer
        self._early = early
        self._patience = patience
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
        unsent = -1
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    await self._writer.drain()
                break
            except TimeoutError:
                before, unsent = unsent, self._unsent()
                if unsent == before:
                    self.abort()
                    raise ConnectionError(f"the client has taken nothing for {self._patience:g} s") from None
            except OSError as error:
                raise ConnectionError(str(error)) from error
        if self._writer.transport.is_closing():
            raise ConnectionError("the connection was closed while this was being sent")

    async def close(self) -> None:
        """Send what is waiting, and the end; read on until the client has closed its side.

        A connection that is closed too early is reset by the next byte that comes from its client (a ping, say), and
        then the kernel throws away what it has not sent yet.
        """
        leaving = asyncio.create_task(self._until_it_leaves())
        taking = asyncio.create_task(self._until_it_has_everything())
        try:
            half_closes = self._writer.can_write_eof()
            if half_closes:
                self._writer.write_eof()
            await asyncio.wait([leaving, taking], return_when=asyncio.FIRST_COMPLETED)
            if taking.done() and not taking.result():
                return
            async with asyncio.timeout(LINGER):
                if not half_closes:  # TLS: this sends close_notify
                    self._writer.close()
                    await self._writer.wait_closed()
                else:
                    await leaving
        except (OSError, TimeoutError):
            pass  # it has gone, or has had its time
        finally:
            leaving.cancel()
            taking.cancel()
            await asyncio.gather(leaving, taking, return_exceptions=True)
            self.abort()

    async def _until_it_leaves(self) -> None:
        """Read and drop."""
        with contextlib.suppress(OSError):
            while await self._reader.read(READ_SIZE):
                pass

    async def _until_it_has_everything(self) -> bool:
        """Wait until nothing is under way any more. False if nothing has moved for too long."""
        unsent, moved = -1, 0.0
        loop = asyncio.get_running_loop()
        quiet = 0
        # Below TLS is another buffer, which does not tell its size; but it never waits while the kernel's is empty.
        while quiet < 2:
            before, unsent = unsent, self._unsent()
            quiet = 0 if unsent else quiet + 1
            if unsent != before:
                moved = loop.time()
            elif unsent and loop.time() - moved > self._patience:
                return False
            await asyncio.sleep(_POLL)
        return True

    def _unsent(self) -> int:
        """Bytes that wait here or in the kernel. Raises OSError."""
        transport = self._writer.transport
        waiting = transport.get_write_buffer_size()
        connection = transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:  # closed
            return 0
        (queued,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), _UNSENT, bytes(4)))
        return waiting + int(queued)

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()
