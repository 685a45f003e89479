"""Walking what the node has without holding up the loop, and list answers out of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

from cri.errors import ResourceExhaustedError
from cri.rpc.answers import MAX_MESSAGE_BYTES

SLICE = 0.00025
"""Seconds of work between two turns of the loop. A call that needs none of it takes several of these turns."""

BATCH = 100
"""Items in one message of a streamed list, at most."""

BATCH_BYTES = 128 * 1024
"""Bytes in one message of a streamed list, at most, but for an item that is larger."""


T = TypeVar("T")


class Pace:
    """The pace at which long work is done on the loop: in slices, one of them in each of its turns, whoever's it is."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        """Held over one turn of the loop."""

    async def over(self, items: Iterable[T]) -> AsyncGenerator[T, None]:
        """The items, with the loop let in again and again. What may change meanwhile must be given as a copy."""
        began = time.perf_counter()
        for item in items:
            yield item
            if time.perf_counter() - began > SLICE:
                async with self._turn:
                    await asyncio.sleep(0)
                began = time.perf_counter()


def checked(what: str, size: int) -> None:
    """See that an item of a list fits into a message. Raises ResourceExhaustedError that names it."""
    if size > MAX_MESSAGE_BYTES:
        raise ResourceExhaustedError(
            f"{what} has {size} bytes in a list, and a message at most {MAX_MESSAGE_BYTES}: "
            "its labels and annotations are too long; remove it by its id, and make it anew with less"
        )


async def batches(items: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The messages of a streamed list, from its items."""
    batch: list[bytes] = []
    size = 0
    async for item in items:
        if batch and (len(batch) == BATCH or size + len(item) > BATCH_BYTES):
            yield b"".join(batch)
            batch.clear()
            size = 0
        batch.append(item)
        size += len(item)
    if batch:
        yield b"".join(batch)
