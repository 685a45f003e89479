"""Work that later callers join instead of doing it again.

The kubelet retries a call whose deadline passed. The first call's work goes on regardless, and the retry must find
it: join it while it runs, or collect its result if nobody was left to hear it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Running(Generic[T]):
    task: asyncio.Task[T]
    fingerprint: object
    waiting: int = 0


class SharedWork(Generic[T]):
    """Tasks by key. A caller that goes away never cancels the work.

    With `keep_unheard`, a result that nobody was left to hear is kept for the retry (or until `forget`).
    """

    def __init__(self, name: str, *, keep_unheard: bool = False) -> None:
        self._name = name
        self._keep_unheard = keep_unheard
        self._running: dict[Hashable, _Running[T]] = {}
        self._unclaimed: dict[Hashable, tuple[object, T]] = {}

    async def run(self, key: Hashable, make: Callable[[], Awaitable[T]], *, fingerprint: object = None) -> T:
        """Do `make()` under this key, or join what is under way or done-but-unheard with the same fingerprint.

        With another fingerprint nothing is joined: the caller waits for the end of what runs, then `make` decides.
        """
        while (running := self._running.get(key)) is not None and (
            running.fingerprint != fingerprint or running.task.done()
        ):
            await asyncio.wait([running.task])
            await asyncio.sleep(0)  # for the callback that takes it off the list
        if running is None:
            if (heard_late := self._unclaimed.pop(key, None)) is not None and heard_late[0] == fingerprint:
                return heard_late[1]
            running = _Running(asyncio.ensure_future(_as_coroutine(make)), fingerprint)
            self._running[key] = running
            running.task.add_done_callback(lambda task: self._done(key, task))
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        except asyncio.CancelledError:
            running.waiting -= 1
            raise

    def forget(self, key: Hashable) -> None:
        """Drop an unheard result: its object is gone."""
        self._unclaimed.pop(key, None)

    def busy(self, key: Hashable) -> bool:
        """Whether work under this key is under way."""
        return key in self._running

    async def settle(self, concerns: Callable[[Hashable], bool] = lambda _: True) -> None:
        """Wait until nothing is under way, of the keys that `concerns` says yes to."""
        while tasks := [running.task for key, running in self._running.items() if concerns(key)]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # for the callbacks that take them off the list

    async def abandon(self) -> None:
        """Cancel all that is under way, and wait for its end."""
        for running in self._running.values():
            running.task.cancel()
        await self.settle()

    def _done(self, key: Hashable, task: asyncio.Task[T]) -> None:
        running = self._running.pop(key)
        if running.waiting:
            return
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            # As text, whoever writes the log: credentials in a key show nothing of themselves.
            log.warning("work failed with nobody waiting", work=self._name, key=str(key), error=str(error))
        elif self._keep_unheard:
            self._unclaimed[key] = (running.fingerprint, task.result())


async def _as_coroutine(make: Callable[[], Awaitable[T]]) -> T:
    return await make()
