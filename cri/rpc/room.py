"""Memory for answers, until their clients have taken them.

A client need not read what it has asked for. What it leaves unread stays in memory, once here and once in gRPC, so all
large answers together get a bounded room, and a call waits for its share of it before its answer is put together. Small
answers never wait, but they count. While somebody waits, or small answers alone are too many, a call is ended whose
client has taken nothing for a while: nobody can hold the room, and so nobody can keep it from others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import structlog

from cri.rpc import ending

log: structlog.stdlib.BoundLogger = structlog.get_logger("cri.rpc")

ROOM = 48 * 1024 * 1024
"""Bytes of answers that may be under way: three of the largest. They cost twice as much memory."""

PATIENCE = 3.0
"""Seconds that a client has to take a whole answer while others wait. It is on the same machine."""

SMALL = 256 * 1024
"""Bytes up to which an answer does not wait."""

TINY = 4 * 1024
"""Bytes up to which an answer does not even count: the call itself costs more."""

Handler = asyncio.Task[Any]
"""The task in which grpc.aio runs a call. It is over when the call's answer has been taken."""


@dataclass(slots=True)
class _Share:
    bytes: int
    since: float


@dataclass(slots=True)
class _Waiting:
    bytes: int
    turn: asyncio.Future[None]


class Room:
    """The room of one server. All of it runs on the event loop."""

    def __init__(self, size: int = ROOM, patience: float = PATIENCE) -> None:
        self.used = 0
        """Bytes of the answers under way."""
        self._size = size
        self._patience = patience
        self._shares: dict[Handler, _Share] = {}
        """The oldest first."""
        self._queue: OrderedDict[Handler, _Waiting] = OrderedDict()
        self._newest_next = False
        self._alarm: asyncio.TimerHandle | None = None

    async def take(self, size: int) -> None:
        """Make room for an answer of the call that runs in this task, until `give_back` or the end of the task.

        Waits if the answer is large, as long as others are under way that leave it no room. An answer larger than the
        whole room gets it alone.
        """
        if size <= TINY:
            return
        handler = asyncio.current_task()
        assert handler is not None
        if size > SMALL and (self._queue or not self._fits(size)):
            await self._turn(handler, size)
        else:
            self._enter(handler, size)
        handler.add_done_callback(self.give_back)

    def give_back(self, handler: Handler | None = None) -> None:
        """The answer of this task (of the one that runs, if none is given) has been taken, or nobody wants it."""
        handler = handler or asyncio.current_task()
        if handler is not None and (share := self._shares.pop(handler, None)) is not None:
            handler.remove_done_callback(self.give_back)
            self.used -= share.bytes
            self._admit()

    async def _turn(self, handler: Handler, size: int) -> None:
        waiting = self._queue[handler] = _Waiting(size, asyncio.get_running_loop().create_future())
        self._watch()
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if self._queue.pop(handler, None) is None:
                self.give_back(handler)
            self._admit()
            raise

    def _enter(self, handler: Handler, size: int) -> None:
        self._shares[handler] = _Share(size, asyncio.get_running_loop().time())
        self.used += size
        if self.used > self._size:
            self._watch()

    def _fits(self, size: int) -> bool:
        return not self._shares or self.used + size <= self._size

    def _admit(self) -> None:
        """Let in who waits and fits: in turns the newest and the oldest, so that a crowd that is stuck stops nobody."""
        while self._queue:
            handler = next(reversed(self._queue) if self._newest_next else iter(self._queue))
            if not self._fits(self._queue[handler].bytes):
                return
            waiting = self._queue.pop(handler)
            if waiting.turn.done():  # cancelled, and yet to be told
                continue
            self._newest_next = not self._newest_next
            self._enter(handler, waiting.bytes)
            waiting.turn.set_result(None)

    def _watch(self) -> None:
        """End calls whose time is over, as long as others need their room, and come again for the next."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        loop = asyncio.get_running_loop()
        while self._shares and (self._queue or self.used > self._size):
            handler, share = next(iter(self._shares.items()))
            if (left := share.since + self._patience - loop.time()) > 0:
                self._alarm = loop.call_later(left, self._watch)
                return
            seconds = round(loop.time() - share.since, 1)
            if ending.end(handler):
                log.warning(
                    "call ended: others wait for room, and its client does not take the answer",
                    bytes=share.bytes,
                    seconds=seconds,
                )
                self.give_back(handler)
            else:
                log.error("a client does not take an answer, and grpc.aio keeps it", bytes=share.bytes)
                self._shares.pop(handler)
                self._shares[handler] = _Share(share.bytes, loop.time())
