"""Long work on the loop, in slices; and the messages of streamed lists."""

from __future__ import annotations

import asyncio
import time

import pytest

from cri import lists
from cri.errors import ResourceExhaustedError
from cri.lists import BATCH, BATCH_BYTES, SLICE, Pace


async def walk(pace: Pace, items: list[int], work: float) -> list[int]:
    found = []
    async for some in pace.over(items):
        time.sleep(work)
        found += some
    return found


async def test_everything_comes_in_order() -> None:
    items = list(range(1000))
    assert await walk(Pace(), items, 0) == items
    assert await walk(Pace(), [], 0) == []


@pytest.mark.parametrize("walks", [1, 20])
async def test_the_loop_is_let_in_between_slices_whoevers_they_are(walks: int) -> None:
    """In each of its turns, one slice is done, not one for each of those who walk."""
    pace, work = Pace(), 2 * SLICE
    tasks = [asyncio.create_task(walk(pace, list(range(160)), work)) for _ in range(walks)]
    turns = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turns += 1
    assert turns >= walks * 10


async def test_who_stops_in_the_middle_keeps_nobody() -> None:
    pace = Pace()
    async for _ in pace.over(list(range(100))):
        break
    assert await asyncio.wait_for(walk(pace, [1, 2], 0), 5) == [1, 2]
    cancelled = asyncio.create_task(walk(pace, list(range(10_000)), 2 * SLICE))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    assert await asyncio.wait_for(walk(pace, [1, 2], 0), 5) == [1, 2]


async def batched(*items: bytes) -> list[bytes]:
    async def some():
        for first in range(0, len(items), 16):
            yield items[first : first + 16]

    return [message async for message in lists.batches(some())]


async def test_messages_are_bounded_in_items_and_bytes() -> None:
    assert await batched() == []
    assert await batched(*[b"x"] * (BATCH + 1)) == [b"x" * BATCH, b"x"]
    half, large = b"h" * (BATCH_BYTES // 2), b"l" * (3 * BATCH_BYTES)
    assert await batched(half, half, half) == [half + half, half]
    assert await batched(b"a", large, b"b", b"c") == [b"a", large, b"bc"]


def test_an_item_that_fits_into_no_message_is_named() -> None:
    lists.checked("container abc", 16 << 20)
    with pytest.raises(ResourceExhaustedError, match=r"^container abc has 16777217 bytes in a list"):
        lists.checked("container abc", (16 << 20) + 1)
