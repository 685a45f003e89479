"""Bytes on their way from a carrier's reader to whoever consumes them, as many as there may be at a time."""

from __future__ import annotations

import asyncio
from collections import deque

from cri.streaming.session import ClientGoneError

LIMIT = 256 * 1024


class Pipe:
    """One task puts, one gets."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._broken = False
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, data: bytes) -> None:
        """Add bytes, and wait while there are too many. After the end they are dropped."""
        if data and not self._ended:
            self._pieces.append(data)
            self._size += len(data)
            self._filled.set()
            if self._size >= self._limit:
                self._room.clear()
                await self._room.wait()

    async def get(self) -> bytes:
        """All bytes that are there, at least one; empty at the end. Raises ClientGoneError after a break."""
        while not self._pieces and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        if not self._pieces and self._broken:
            raise ClientGoneError("the client has gone")
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._room.set()
        return data

    def end(self) -> None:
        """Nothing more comes; what is there can still be had."""
        self._ended = True
        self._filled.set()
        self._room.set()

    def fail(self) -> None:
        """The client has gone without an end."""
        if not self._ended:
            self._broken = True
            self.end()
