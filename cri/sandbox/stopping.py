"""Stops of a container that overlap: they become one, and the most impatient of them counts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

log = structlog.get_logger(__name__)


class Stopping:
    """One stop under way, which later ones join."""

    def __init__(self, grace: float, ended: asyncio.Event) -> None:
        """`grace` is in seconds; `ended` is set when there is nothing left to wait for."""
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + max(grace, 0)
        self._sooner = asyncio.Event()
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is through, well or not."""
        return self._task is not None and self._task.done()

    @property
    def is_patient(self) -> bool:
        """Whether there is time left to end in peace."""
        return self._deadline > self._loop.time()

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Do it, whether or not anybody waits for that any more."""
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(_retrieve)

    def hurry(self, grace: float) -> None:
        """Somebody else is patient for so long only."""
        deadline = self._loop.time() + max(grace, 0)
        if deadline < self._deadline:
            self._deadline = deadline
            self._sooner.set()

    async def join(self) -> None:
        """Wait for it. Raises what it has failed with."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def wait_in_peace(self) -> None:
        """Wait for the end for as long as everybody is patient."""
        while not self._ended.is_set() and (left := self._deadline - self._loop.time()) > 0:
            self._sooner.clear()
            await first_of(self._ended, self._sooner, patience=left)


async def first_of(*events: asyncio.Event, patience: float) -> None:
    """Wait for one of them, for `patience` seconds at most."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a stop has failed", error=str(error))
