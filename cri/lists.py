"""Walking what the node has without holding up the loop, and list answers out of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

from cri.errors import ResourceExhaustedError
from cri.rpc.answers import MAX_MESSAGE_BYTES

SLICE = 0.00025
"""Seconds of work between two turns of the loop. A call that needs none of it takes several of these turns."""

SOME = 16
"""Items between two looks at the clock."""

BATCH = 100
"""Items in one message of a streamed list, at most."""

BATCH_BYTES = 128 * 1024
"""Bytes in one message of a streamed list, at most, but for an item that is larger."""


T = TypeVar("T")


class Pace:
    """The pace at which long work is done on the loop: in slices, one of them in each of its turns, whoever's it is."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        """Held for a turn or two of the loop."""
        self._free = asyncio.Event()
        """Nobody has had his slice in this turn."""
        self._free.set()

    async def over(self, items: Sequence[T], some: int = SOME) -> AsyncGenerator[Sequence[T], None]:
        """The items, some at a time, with the loop let in between. What may change meanwhile must be given as a copy."""
        ends = await self._slice()
        for first in range(0, len(items), some):
            yield items[first : first + some]
            if time.perf_counter() > ends:
                await asyncio.sleep(0)
                ends = await self._slice()

    async def _slice(self) -> float:
        """Wait for a slice; when it ends."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            await self._free.wait()
            self._free.clear()
            loop.call_soon(self._free.set)
        return time.perf_counter() + SLICE


def checked(what: str, size: int) -> None:
    """See that an item of a list fits into a message. Raises ResourceExhaustedError that names it."""
    if size > MAX_MESSAGE_BYTES:
        raise ResourceExhaustedError(
            f"{what} has {size} bytes in a list, and a message at most {MAX_MESSAGE_BYTES}: "
            "its labels and annotations are too long; remove it by its id, and make it anew with less"
        )


async def batches(items: AsyncGenerator[Sequence[bytes], None]) -> AsyncGenerator[bytes, None]:
    """The messages of a streamed list, from its items."""
    batch: list[bytes] = []
    size = 0
    async for some in items:
        for item in some:
            if batch and (len(batch) == BATCH or size + len(item) > BATCH_BYTES):
                yield b"".join(batch)
                batch.clear()
                size = 0
            batch.append(item)
            size += len(item)
    if batch:
        yield b"".join(batch)
