"""One stream of a SPDY connection, as its user sees it (SPDY Protocol, Draft 3.1, section 2.3)."""

from __future__ import annotations

import contextlib
import enum
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy.codec import data_head
from cri.streaming.spdy.flow import ReceiveWindow, SendWindow
from cri.streaming.spdy.frames import Frame, ResetStatus, RstStream, SynReply
from cri.streaming.spdy.signal import Signal

DATA_SIZE = 64 * 1024
"""Bytes that one DATA frame of ours has at most: others get their turn between them, and spdystream, which reads a
frame whole and queues fifty, does not need much memory."""

_PIECE_COST = 64
"""Bytes of memory that a piece of data takes, however small it is."""


class Phase(enum.Enum):
    """What the client has been told about a stream."""

    OFFERED = enum.auto()
    """Nothing."""
    OPEN = enum.auto()
    """SYN_REPLY."""
    ENDED = enum.auto()
    """That no more comes from here (FIN)."""
    GONE = enum.auto()
    """It was reset, by either side, or the connection is gone."""


class Carrier(Protocol):
    """What a stream needs of its connection."""

    windows: Signal
    """Room to send in may have grown, or a stream has ended."""

    async def send(self, build: Callable[[], tuple[bytes, ...]]) -> None:
        """Write what `build` returns when it is the caller's turn. Raises ClientGoneError."""

    def encode(self, frame: Frame) -> bytes:
        """A frame, for use in `build` only."""

    def room(self, stream: SpdyStream) -> int:
        """Bytes that the windows allow to send."""

    def spend(self, stream: SpdyStream, size: int) -> None:
        """Count them as sent."""

    def consumed(self, stream: SpdyStream, size: int, cost: int) -> None:
        """Data has left the stream's buffer."""

    def settled(self, stream: SpdyStream) -> None:
        """Maybe both directions of the stream have ended."""


class SpdyStream:
    """A stream that the client has opened.

    Its user replies or refuses first. The two directions are independent; each may be used by one task at a time.
    """

    def __init__(
        self,
        connection: Carrier,
        stream_id: int,
        headers: Mapping[str, str],
        *,
        buffer: int,
        send_window: SendWindow,
        receive_window: ReceiveWindow,
    ) -> None:
        self.id = stream_id
        self.headers = headers
        """By names in lower case; the first value of each."""
        self.phase = Phase.OFFERED
        self.received_all = False
        """The client has ended its direction."""
        self.receive_window = receive_window
        self.send_window = send_window
        self.changed = Signal()
        """Data has come, or the state has changed."""
        self.cost = 0
        """Bytes of memory that wait for `read`."""
        self._connection = connection
        self._buffer = buffer
        self._pieces: deque[bytes] = deque()
        self._ignored = False

    def __repr__(self) -> str:
        return f"<SpdyStream {self.id} {self.phase.name}>"

    @property
    def finished(self) -> bool:
        """Nothing can come or be sent any more."""
        return self.phase is Phase.GONE or (self.phase is Phase.ENDED and self.received_all)

    @property
    def full(self) -> bool:
        """Whoever reads must catch up first."""
        return self.cost >= self._buffer

    async def reply(self) -> None:
        """Tell the client that the stream is welcome. Raises ClientGoneError."""
        if self.phase is Phase.GONE:
            raise self._gone()
        if self.phase is Phase.OFFERED:
            self.phase = Phase.OPEN
            await self._connection.send(lambda: (self._encoded(SynReply(self.id)),))

    async def refuse(self) -> None:
        """Tell the client that it is not. Succeeds if the client has gone."""
        await self.reset(ResetStatus.REFUSED_STREAM)

    async def reset(self, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """End both directions at once; what has not been read or sent is lost. Succeeds if the client has gone."""
        if not self.finished:
            self.vanish()
            with contextlib.suppress(ClientGoneError):
                await self._connection.send(lambda: (self._connection.encode(RstStream(self.id, status)),))

    async def read(self) -> bytes:
        """What has come since the last call, or the next data; empty at the end of the client's direction.

        Raises ClientGoneError; of a lost connection when all that came before has been read.
        """
        while not self._pieces:
            if self.received_all or self._ignored:
                return b""
            if self.phase is Phase.GONE:
                raise self._gone()
            await self.changed.wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._drop()
        return data

    async def ignore(self) -> None:
        """Read no more: what the client has sent and will send is dropped, until it ends the stream."""
        self._ignored = True
        self._drop()
        self.changed.fire()

    async def write(self, data: bytes) -> None:
        """Send data, and wait while the client has no room. Raises ClientGoneError, after `end` too."""
        sent = 0

        def frame() -> tuple[bytes, ...]:
            nonlocal sent
            self._check_open()
            size = min(len(data) - sent, DATA_SIZE, self._connection.room(self))
            if size <= 0:
                return ()
            piece = data[sent : sent + size]
            sent += size
            self._connection.spend(self, size)
            return data_head(self.id, size), piece

        while sent < len(data):
            while self._connection.room(self) <= 0:
                self._check_open()
                await self._connection.windows.wait()
            await self._connection.send(frame)

    async def end(self) -> None:
        """Send no more. The client may go on. Succeeds if repeated; raises ClientGoneError."""

        def frame() -> tuple[bytes, ...]:
            self._check_open()
            self.phase = Phase.ENDED
            return (data_head(self.id, 0, fin=True),)

        if self.phase is not Phase.ENDED:
            await self._connection.send(frame)
            self._connection.settled(self)

    def receive(self, data: bytes) -> int:
        """Data has come; how much memory it keeps."""
        if self._ignored:
            self._connection.consumed(self, len(data), 0)
            return 0
        if not data:
            return 0
        self._pieces.append(data)
        self.cost += (cost := len(data) + _PIECE_COST)
        self.changed.fire()
        return cost

    def receive_end(self) -> None:
        """The client has ended its direction."""
        self.received_all = True
        self.changed.fire()
        self._connection.settled(self)

    def vanish(self, *, keep: bool = False) -> None:
        """Nothing more can be sent, and nothing more comes. With `keep`, what came before may still be read."""
        self.phase = Phase.GONE
        if not keep:
            self.received_all = False
            self._drop()
        self.changed.fire()
        self._connection.settled(self)

    def _drop(self) -> None:
        """Empty the buffer."""
        if self._pieces:
            size, cost = sum(map(len, self._pieces)), self.cost
            self._pieces.clear()
            self.cost = 0
            self._connection.consumed(self, size, cost)

    def _encoded(self, frame: Frame) -> bytes:
        self._check_open()
        return self._connection.encode(frame)

    def _check_open(self) -> None:
        assert self.phase is not Phase.OFFERED, f"{self} was used before the reply"
        if self.phase is not Phase.OPEN:
            raise self._gone()

    def _gone(self) -> ClientGoneError:
        return ClientGoneError(f"stream {self.id} has ended, or its connection is gone")
