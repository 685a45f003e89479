"""Waiting for one of several things that may end a session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any


@contextlib.asynccontextmanager
async def watching(*events: Coroutine[Any, Any, Any]) -> AsyncIterator[Sequence[asyncio.Task[Any]]]:
    """These as tasks, which are over in the end: cancelled, and what they raise is nobody's any more."""
    tasks = [asyncio.create_task(event) for event in events]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*tasks: asyncio.Task[Any], patience: float | None = None) -> None:
    """Wait until one is done, for `patience` seconds at most."""
    await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
