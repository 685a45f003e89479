"""Long work in a thread that ends with the task that waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class AbandonedError(Exception):
    """Raised in the thread, by its own `check`: nobody waits for it any more."""


async def threaded(work: Callable[[Callable[[], None]], T]) -> T:
    """`work(check)` in a thread of its own, whose result or exception is the caller's.

    The thread has ended when this returns or raises. If the task is cancelled, the next call of `check` raises
    AbandonedError in the thread; so `work` calls it many times a second.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    abandoned = threading.Event()

    def check() -> None:
        if abandoned.is_set():
            raise AbandonedError

    def run() -> None:
        try:
            result = work(check)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    # Not the loop's executor, whose threads the end of the loop waits for, and all of which could be busy with this.
    threading.Thread(target=run, name="work", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
            abandoned.set()
    if cancelled is not None:
        done.exception()  # so that nobody says it was never looked at
        raise cancelled
    return done.result()
