"""How a call is ended whose client does not take the answer.

gRPC keeps an answer in memory until its client has room for it, and grpc.aio has no way to take one back: `abort` queues
its status behind the answer. But a call that nobody holds any more is cancelled (grpc_call_unref), with its answer freed
and the stream reset. It is held by two tasks: the one that runs the handler, and the one that has made it, which listens
for the client's end. The handler sees the first only, so who makes which task is written down as long as both exist.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

Work = Coroutine[Any, Any, Any] | Generator[Any, None, Any]


class _MadeTask(asyncio.Task[Any]):
    """A task that knows which one has made it."""

    maker: weakref.ReferenceType[asyncio.Task[Any]] | None = None


def remember_makers(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's tasks know their makers from now on. Raises RuntimeError if it has a task factory of its own."""
    if loop.get_task_factory() not in (None, _make):
        raise RuntimeError("the event loop has a task factory already: calls could not be ended")
    loop.set_task_factory(_make)


def end(handler: asyncio.Task[Any]) -> bool:
    """End the call whose handler runs in this task. False, and nothing done, if grpc.aio holds it in some other way."""
    maker = handler.maker() if isinstance(handler, _MadeTask) and handler.maker is not None else None
    if maker is None or not maker.cancel():
        return False
    handler.cancel()
    return True


def _make(
    loop: asyncio.AbstractEventLoop, work: Work, *, context: Context | None = None, **options: Any
) -> asyncio.Task[Any]:
    task = _MadeTask(work, loop=loop, context=context, **options)
    if (maker := asyncio.current_task(loop)) is not None:
        task.maker = weakref.ref(maker)
    return task
