"""What a request carries: bytes that come as they are sent, from a source that is closed whatever becomes of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

_AHEAD = 2  # pieces that are read before the peer has taken those before them


@dataclass(frozen=True, slots=True)
class Body:
    """The `size` bytes of `stream`, which is called anew for each time that they are sent."""

    size: int
    stream: Callable[[], AsyncGenerator[bytes, None]]


class Feed:
    """One sending of a body: reads ahead a little, in a task that is this object's own and ends with it.

    aiohttp drops a body that it does not want any more somewhere in its middle, and would leave it to the garbage collector.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._task = asyncio.create_task(self._read(), name="body of a request")
        self.failure: Exception | None = None
        """What the source has raised. aiohttp tells of it as of a broken connection."""

    async def pieces(self, taken: Callable[[], None]) -> AsyncIterator[bytes]:
        """Yield the bytes, and tell `taken` of each piece that the peer has room for."""
        while (piece := await self._pieces.get()) is not None:
            taken()
            yield piece
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """Stop reading; returns when the source is closed."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _read(self) -> None:
        try:
            async with aclosing(self._body.stream()) as pieces:
                async for piece in pieces:
                    await self._pieces.put(piece)
        except Exception as error:  # noqa: BLE001 - whoever sends raises it
            self.failure = error
        await self._pieces.put(None)
