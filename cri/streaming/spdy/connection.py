"""The server side of a SPDY/3.1 connection (SPDY Protocol, Draft 3.1).

One task reads frames and deals them out (`SpdyConnection.run`), and waits whenever a buffer is full. Everything that
is sent goes through `Sender`. Only clients open streams here; there is no push.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy.codec import Decoder
from cri.streaming.spdy.errors import SpdyError
from cri.streaming.spdy.flow import DEFAULT_WINDOW, Heed, ReceiveWindow, SendWindow
from cri.streaming.spdy.frames import (
    INITIAL_WINDOW_SIZE,
    MAX_WINDOW,
    Data,
    Frame,
    GoAway,
    GoAwayStatus,
    Headers,
    Ping,
    ResetStatus,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)
from cri.streaming.spdy.limits import Limits
from cri.streaming.spdy.sender import Sender
from cri.streaming.spdy.signal import Signal
from cri.streaming.spdy.stream import Phase, SpdyStream
from cri.streaming.wire import LINGER, Wire

__all__ = ["Limits", "SpdyConnection", "SpdyStream"]

log = structlog.get_logger(__name__)

PROBE_INTERVAL: Final = 15.0
"""Seconds between looks whether a client is still there, while it is not being read."""

_BURST: Final = 256
"""Frames that are dealt with before others have the event loop."""


class SpdyConnection:
    """One client. Start `run` in a task of its own; `accept` then gives the streams that the client opens."""

    def __init__(self, wire: Wire, *, limits: Limits | None = None) -> None:
        self._wire = wire
        self._limits = limits = limits or Limits()
        self._decoder = Decoder(limits)
        self._sender = Sender(wire, limits.answers)
        self._streams: dict[int, SpdyStream] = {}
        """Those that have not ended in both directions."""
        self._unaccepted: deque[SpdyStream] = deque()
        self._last_id = 0
        self._cost = 0
        """Bytes of memory that wait in all streams."""
        self._heed = Heed()
        self._send_window = SendWindow(DEFAULT_WINDOW)
        self._initial_send_window = DEFAULT_WINDOW
        self._stream_window = max(limits.stream_buffer, DEFAULT_WINDOW)
        self._session_window = max(limits.connection_buffer, DEFAULT_WINDOW)
        self._receive_window = ReceiveWindow(self._session_window)
        self._leaving = False
        """The client has sent GOAWAY."""
        self._gone = False
        self._closing = False
        self._reader: asyncio.Task[None] | None = None
        self._arrived = Signal()
        """A stream to accept, or the end."""
        self._freed = Signal()
        """Room to receive in, or the end."""
        self._ended = asyncio.Event()
        self._parted = asyncio.Event()
        self.windows = Signal()

    async def run(self) -> None:
        """Serve the client until it has gone, has broken the protocol, or `close`. Raises nothing but CancelledError."""
        self._reader = asyncio.create_task(self._read())
        tasks = {self._reader, asyncio.create_task(self._answer())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.error("a SPDY connection failed", exc_info=error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._lose()
            if not self._closing:
                self._wire.abort()

    async def accept(self) -> SpdyStream | None:
        """The next stream that the client has opened; None when it has gone."""
        while not self._gone:
            while self._unaccepted:
                stream = self._unaccepted.popleft()
                self._freed.fire()
                if stream.phase is not Phase.GONE:
                    return stream
            await self._arrived.wait()
        return None

    async def closed(self) -> None:
        """Return when the client has gone, or this connection was closed."""
        await self._ended.wait()

    async def close(self) -> None:
        """Say GOAWAY, and close once the client has read what it was sent before. Takes up to twice `LINGER`.

        Succeeds if repeated, and if the client has gone.
        """
        if self._closing:
            await self._parted.wait()
        elif self._gone:
            self._wire.abort()
        else:
            await self._part(GoAwayStatus.OK)

    def abort(self) -> None:
        """Close at once."""
        self._lose()
        self._wire.abort()

    # What streams use (stream.Carrier).

    async def send(self, build: Callable[[], tuple[bytes, ...]]) -> None:
        """Write what `build` returns when it is the caller's turn. Raises ClientGoneError."""

        def build_if_there() -> tuple[bytes, ...]:
            if self._gone:
                raise ClientGoneError("the client has gone")
            return build()

        try:
            await self._sender.send(build_if_there)
        except ConnectionError as error:
            self.abort()
            raise ClientGoneError("the client has gone") from error

    def encode(self, frame: Frame) -> bytes:
        """A frame, for use in `build` only."""
        return self._sender.encode(frame)

    def room(self, stream: SpdyStream) -> int:
        """Bytes that the windows allow to send: all there are if the client does not care."""
        room = MAX_WINDOW
        if self._heed.streams:
            room = self._initial_send_window + stream.send_window.room
        if self._heed.session:
            room = min(room, self._send_window.room)
        return room

    def spend(self, stream: SpdyStream, size: int) -> None:
        """Count bytes that are being sent."""
        stream.send_window.spend(size)
        self._send_window.spend(size)

    def consumed(self, stream: SpdyStream, size: int, cost: int) -> None:
        """Data has left the stream's buffer: read on, and have the client send more."""
        self._cost -= cost
        self._freed.fire()
        self._consumed(size)
        if not (stream.finished or stream.received_all or self._heed.heedless) and (
            delta := stream.receive_window.consume(size)
        ):
            self._sender.credit(stream.id, delta)

    def settled(self, stream: SpdyStream) -> None:
        """Let go of a stream that has ended in both directions."""
        if stream.finished and self._streams.get(stream.id) is stream:
            del self._streams[stream.id]
            self._sender.forget(stream.id)
        self.windows.fire()

    # Reading.

    async def _read(self) -> None:
        frames = 0
        try:
            await self._offer_windows()
            while not self._gone and (data := await self._wire.read()):
                for frame in self._decoder.feed(data):
                    await self._take(frame)
                    if self._gone:
                        return
                    frames += 1
                    if frames % _BURST == 0:
                        await asyncio.sleep(0)
        except SpdyError as error:
            log.warning("a client has broken SPDY and was disconnected", reason=str(error))
            self._lose()
            await self._part(GoAwayStatus.PROTOCOL_ERROR)

    async def _answer(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._sender.run()

    async def _offer_windows(self) -> None:
        """Tell clients that count how much there is room for."""
        await self._sender.answer(Settings(((INITIAL_WINDOW_SIZE, self._stream_window),)))
        if more := self._session_window - DEFAULT_WINDOW:
            self._sender.credit(0, more)

    async def _take(self, frame: Frame) -> None:
        match frame:
            case Data():
                await self._take_data(frame)
            case SynStream():
                await self._take_stream(frame)
            case RstStream(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.vanish()
            case Headers(stream_id):  # Kubernetes sends none
                if frame.fin and (stream := self._streams.get(stream_id)):
                    stream.receive_end()
            case WindowUpdate():
                await self._take_window(frame)
            case Settings():
                self._take_settings(frame)
            case Ping(number):
                if number % 2:  # 2.6.5: an even one would be the answer to one of ours
                    await self._sender.answer(frame)
            case GoAway():
                self._leaving = True
            case SynReply():
                raise SpdyError("SYN_REPLY, but the server has opened no stream")

    async def _take_stream(self, frame: SynStream) -> None:
        """2.3.2, stream creation."""
        if frame.stream_id % 2 == 0 or frame.stream_id < self._last_id:
            raise SpdyError(f"SYN_STREAM for stream {frame.stream_id} after stream {self._last_id}")
        if frame.stream_id == self._last_id or frame.headers.malformed:
            await self._reset(frame.stream_id, ResetStatus.PROTOCOL_ERROR)
        elif frame.unidirectional or self._leaving or len(self._streams) >= self._limits.open_streams:
            await self._reset(frame.stream_id, ResetStatus.REFUSED_STREAM)
        else:
            stream = SpdyStream(
                self,
                frame.stream_id,
                frame.headers.first_values(),
                buffer=self._limits.stream_buffer,
                send_window=SendWindow(),
                receive_window=ReceiveWindow(self._stream_window),
            )
            stream.received_all = frame.fin
            self._streams[frame.stream_id] = stream
            self._unaccepted.append(stream)
            self._arrived.fire()
        self._last_id = frame.stream_id
        await self._room_for(lambda: len(self._unaccepted) < self._limits.unaccepted_streams)

    async def _take_data(self, frame: Data) -> None:
        """2.3.5, stream data exchange."""
        size = len(frame.data)
        if not self._receive_window.spend(size) and self._heed.session:
            raise SpdyError("more data than the session's window has room for")
        stream = self._streams.get(frame.stream_id)
        if stream is None or stream.received_all:
            self._consumed(size)
            await self._take_stray(frame.stream_id, stream)
            return
        if not self._heed.heedless and not stream.receive_window.spend(size):
            if self._heed.streams:
                raise SpdyError("more data than a stream's window has room for")
            self._heed.heedless = True
        self._cost += stream.receive(frame.data)
        if frame.fin:
            stream.receive_end()
        await self._room_for(lambda: not stream.full and self._cost < self._limits.connection_buffer)

    async def _take_stray(self, stream_id: int, stream: SpdyStream | None) -> None:
        """Data for a stream that cannot have any.

        A stream that was open once may have been ended by us, and its data may have been under way: 2.4.2 wants
        that ignored. Who ended it is not kept, as clients could make us keep it for any number of streams.
        """
        if stream is not None:
            await self._reset(stream_id, ResetStatus.STREAM_ALREADY_CLOSED)
        elif stream_id > self._last_id or stream_id % 2 == 0:
            await self._reset(stream_id, ResetStatus.INVALID_STREAM)

    async def _take_window(self, frame: WindowUpdate) -> None:
        """2.6.8: from 1 on, up to a window of 2^31 - 1."""
        if frame.stream_id == 0:
            self._heed.session = True
            if not frame.delta or not self._send_window.grow(frame.delta):
                raise SpdyError(f"WINDOW_UPDATE of {frame.delta} bytes for the session")
        else:
            self._heed.streams = True
            if stream := self._streams.get(frame.stream_id):
                if not frame.delta:
                    await self._reset(frame.stream_id, ResetStatus.PROTOCOL_ERROR)
                elif not stream.send_window.grow(frame.delta, self._initial_send_window):
                    await self._reset(frame.stream_id, ResetStatus.FLOW_CONTROL_ERROR)
        self.windows.fire()

    def _take_settings(self, frame: Settings) -> None:
        """2.6.4: the first value counts. A change concerns all open streams, but none is touched: there may be many."""
        size = next((value for number, value in frame.values if number == INITIAL_WINDOW_SIZE), None)
        if size is None:
            return
        self._heed.streams = True
        self._initial_send_window = size
        if size > MAX_WINDOW:
            raise SpdyError(f"SETTINGS with windows of {size} bytes")
        self.windows.fire()

    async def _reset(self, stream_id: int, status: ResetStatus) -> None:
        """2.4.2, stream error handling."""
        if stream := self._streams.get(stream_id):
            stream.vanish()
        await self._sender.answer(RstStream(stream_id, status))

    def _consumed(self, size: int) -> None:
        if not self._heed.heedless and (delta := self._receive_window.consume(size)):
            self._sender.credit(0, delta)

    async def _room_for(self, there_is: Callable[[], bool]) -> None:
        """Stop reading while a buffer is full, so that the client has to wait, too.

        Meanwhile the end of the client would go unnoticed, for nobody looks. An empty SETTINGS now and then makes
        its system complain if it has closed the connection. It is no PING, as spdystream would try to answer, which
        blocks while its own data does: it would take no output then, and both sides could wait for each other.
        """
        while not (self._gone or there_is()):
            try:
                async with asyncio.timeout(PROBE_INTERVAL):
                    await self._freed.wait()
            except TimeoutError:
                if self._sender.idle:
                    await self._sender.answer(Settings())

    # The end.

    async def _part(self, status: GoAwayStatus) -> None:
        """Say GOAWAY and close the wire."""
        self._closing = True
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(LINGER):
                    await self._sender.send_frame(GoAway(self._last_id, status))
            self._lose()
            if (reader := self._reader) and reader is not asyncio.current_task() and not reader.done():
                reader.cancel()  # it is the wire's `close` that reads from here on
                await asyncio.wait({reader})
            await self._wire.close()
        except asyncio.CancelledError:
            self._wire.abort()
            raise
        finally:
            self._parted.set()

    def _lose(self) -> None:
        """Nothing can be sent any more, and nothing comes. What has come may still be read."""
        self._gone = True
        for stream in list(self._streams.values()):
            stream.vanish(keep=True)
        self._ended.set()
        for signal in (self._arrived, self._freed, self.windows):
            signal.fire()
