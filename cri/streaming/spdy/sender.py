"""What we send: one frame after the other, whoever they are from, and never more than the wire has room for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from cri.streaming.spdy.codec import Encoder
from cri.streaming.spdy.frames import Frame, WindowUpdate
from cri.streaming.spdy.signal import Signal
from cri.streaming.wire import Wire


class Sender:
    """Writers take turns, so that a thousand of them wait with nothing in the wire's buffer.

    What the read loop has to say (PINGs, RST_STREAMs, WINDOW_UPDATEs) it leaves to `run`: it must go on reading
    while a client takes its output slowly, as that client's input may be what it waits for. The answers are few
    and the WINDOW_UPDATEs of a stream become one, so this is bounded.
    """

    def __init__(self, wire: Wire, max_answers: int) -> None:
        self._wire = wire
        self._encoder = Encoder()
        self._turn = asyncio.Lock()
        self._max_answers = max_answers
        self._answers: deque[Frame] = deque()
        self._credits: dict[int, int] = {}
        self._wanted = Signal()
        self._taken = Signal()

    @property
    def idle(self) -> bool:
        """Nobody is writing or wants to."""
        return not (self._turn.locked() or self._answers or self._credits)

    async def send(self, build: Callable[[], tuple[bytes, ...]]) -> None:
        """Write what `build` makes of the situation when it is our turn. Raises ConnectionError, and what `build` does."""
        async with self._turn:
            # No await between the two: what has gone through the compressor must be sent, and in this order.
            if parts := build():
                await self._wire.write(*parts)

    async def send_frame(self, frame: Frame) -> None:
        """Write a frame. Raises ConnectionError."""
        await self.send(lambda: (self._encoder.encode(frame),))

    def encode(self, frame: Frame) -> bytes:
        """For use in `build` only."""
        return self._encoder.encode(frame)

    async def answer(self, frame: Frame) -> None:
        """Have a frame without headers written soon; waits while too many others are waiting."""
        while len(self._answers) >= self._max_answers:
            await self._taken.wait()
        self._answers.append(frame)
        self._wanted.fire()

    def credit(self, stream_id: int, delta: int) -> None:
        """Have a window opened soon."""
        self._credits[stream_id] = self._credits.get(stream_id, 0) + delta
        self._wanted.fire()

    def forget(self, stream_id: int) -> None:
        """A stream that is gone needs no window."""
        self._credits.pop(stream_id, None)

    async def run(self) -> None:
        """Write answers and open windows until the connection is gone. Raises ConnectionError."""
        while True:
            while self._answers or self._credits:
                await self.send(self._pending)
            await self._wanted.wait()

    def _pending(self) -> tuple[bytes, ...]:
        frames = [*self._answers, *(WindowUpdate(*credit) for credit in self._credits.items())]
        self._answers.clear()
        self._credits.clear()
        self._taken.fire()
        return (b"".join(map(self._encoder.encode, frames)),)
