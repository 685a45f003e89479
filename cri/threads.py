"""Threads for calls that may hang, and for work that takes long."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from baustelle.starting import STARTER

P = ParamSpec("P")
T = TypeVar("T")


async def in_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread of its own, and wait for it.

    For what touches a volume: one that hangs (a dead NFS server) would take a thread of the shared pool with it for good,
    and after a few of them nobody could stop a pod. This thread is lost alone, and does not keep the daemon from ending.
    """
    return await _begun(function, *args, **kwargs)


class AbandonedError(Exception):
    """Raised in a thread, by the `check` that it was given: nobody waits for it any more."""


async def threaded(work: Callable[[Callable[[], None]], T]) -> T:
    """`work(check)` in a thread of its own that has ended when this returns or raises.

    For long work that is undone or gone on with afterwards. If the task is cancelled, the next call of `check` raises
    AbandonedError in the thread; so `work` calls it many times a second.
    """
    abandoned = threading.Event()

    def check() -> None:
        if abandoned.is_set():
            raise AbandonedError

    done = _begun(work, check)
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


def _begun(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Begin a call in a thread of its own, which neither the loop's executor nor the end of the daemon waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not done.done():
            set_outcome()

    def work() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            outcome = _raising(done, error)
        else:
            outcome = _returning(done, result)
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, outcome)

    def failed(error: BaseException) -> None:
        loop.call_soon_threadsafe(settle, _raising(done, error))

    _own(f"own {function.__name__}", work, failed)
    return done


class _Worker:
    """A thread that does one thing after the other, for one caller at a time."""

    def __init__(self, failed: Callable[[BaseException], object]) -> None:
        """`failed` is told if there can be no more threads: then what it is given to do is never done."""
        self._work: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        STARTER.start(threading.Thread(target=self._run, name="own", daemon=True), failed)

    def do(self, name: str, work: Callable[[], None]) -> None:
        """Begin some work, which raises nothing."""
        self._work.put((name, work))

    def _run(self) -> None:
        thread = threading.current_thread()
        while (found := self._work.get()) is not None:
            thread.name, work = found
            work()
            del found, work  # what it has come to may be large
            thread.name = "own, idle"
            if len(_idle) >= _IDLE:
                return
            _idle.append(self)


_IDLE = 4
"""Threads that wait for more to do: making one takes as long as most of what they do."""
_idle: list[_Worker] = []


def _own(name: str, work: Callable[[], None], failed: Callable[[BaseException], object]) -> None:
    """Have something done by a thread that nobody else waits for meanwhile."""
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker(failed)
    worker.do(name, work)


def _raising(done: asyncio.Future[T], error: BaseException) -> Callable[[], None]:
    return lambda: done.set_exception(error)


def _returning(done: asyncio.Future[T], result: T) -> Callable[[], None]:
    return lambda: done.set_result(result)
