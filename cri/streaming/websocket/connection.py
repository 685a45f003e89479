"""The server's end of a WebSocket: messages in both directions, with back pressure in both, and what keeps it alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import structlog
from websockets.frames import Close, CloseCode, Opcode

from cri.streaming.session import ClientGoneError
from cri.streaming.websocket.frames import (
    Control,
    Fragment,
    FrameReader,
    ProtocolBreachError,
    frame_header,
)
from cri.streaming.wire import Wire

log = structlog.get_logger(__name__)

HEARTBEAT = 30.0
"""Seconds between pings. Nobody has to answer them: a client that has gone is found out by them even while it is not read
from, and proxies on the way see that the connection lives."""

TURN = 64
"""Frames that are looked at before others on the event loop have a turn."""

MAX_REASON = 123
"""Bytes of text in a close frame (RFC 6455, section 5.5.1)."""


class WebSocketConnection:
    """A WebSocket after its handshake. One task at a time may `receive`, any number may send."""

    def __init__(self, wire: Wire, heartbeat: float = HEARTBEAT) -> None:
        self._wire = wire
        self._turn = asyncio.Lock()
        """Of who sends a message: the others wait with nothing in the wire's buffer."""
        self._heartbeat = heartbeat
        self._reader = FrameReader()
        self._received: Iterator[Fragment | Control] = iter(())
        self._looked_at = 0
        self._closing = False
        self._gone = asyncio.Event()
        self._ping = b""
        self._pinged = asyncio.Event()
        self._keeping_alive = asyncio.create_task(self._keep_alive(), name="websocket keepalive")

    async def receive(self) -> Fragment:
        """The next part of a message. Raises ClientGoneError when there are no more, now and ever after."""
        try:
            while True:
                event = next(self._received, None)
                if event is None:
                    await self._read()
                    continue
                self._looked_at += 1
                if self._looked_at % TURN == 0:
                    await asyncio.sleep(0)
                if isinstance(event, Fragment):
                    return event
                await self._control(event)
        except ProtocolBreachError as breach:
            raise await self.fail(breach.code, str(breach)) from None

    async def _read(self) -> None:
        data = b"" if self._gone.is_set() else await self._wire.read()
        if not data:
            self._gone.set()
            raise ClientGoneError("the WebSocket's client has gone")
        self._received = self._reader.feed(data)

    async def _control(self, control: Control) -> None:
        if control.opcode is Opcode.PING:
            # Only the newest ping has to be answered (section 5.5.3). So whoever pings without reading makes nothing
            # grow, and a client that reads slowly is still listened to.
            self._ping = control.data
            self._pinged.set()
        elif control.opcode is Opcode.CLOSE:
            await self._closed_by_client(control.data)

    async def _closed_by_client(self, payload: bytes) -> None:
        try:
            Close.parse(payload)
        except Exception as error:  # the library's ProtocolError, or UnicodeDecodeError
            raise ProtocolBreachError(CloseCode.PROTOCOL_ERROR, "a close frame makes no sense") from error
        await self._end(payload)
        raise ClientGoneError("the client has closed the WebSocket")

    async def fail(self, code: CloseCode, message: str) -> ClientGoneError:
        """Close the connection because of what the client has sent; the error for the caller to raise."""
        log.info("a WebSocket's client broke the protocol", reason=message, code=int(code))
        await self._end(_close_payload(code, message))
        return ClientGoneError(message)

    async def _end(self, payload: bytes) -> None:
        """Send a close frame unless there was one, without waiting, and take nothing more from the client."""
        self._gone.set()
        self._received = iter(())
        if not self._closing:
            self._closing = True
            self._keeping_alive.cancel()
            await self._write_briefly(frame_header(Opcode.CLOSE, len(payload)), payload)

    async def _write_briefly(self, *parts: bytes) -> None:
        """Send what nobody has to wait for: it is on its way, or the client does not read."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                await self._wire.write(*parts)

    @property
    def busy(self) -> bool:
        """Somebody is sending just now."""
        return self._turn.locked()

    async def send(self, *parts: bytes, text: bool = False) -> None:
        """Send a message, given in parts, and wait while the client has no room. Raises ClientGoneError."""
        opcode = Opcode.TEXT if text else Opcode.BINARY
        try:
            # Control frames are not kept waiting: they are small, and there is one of a kind at a time.
            async with self._turn:
                if self._closing:
                    raise ClientGoneError("the WebSocket is closed")
                await self._wire.write(frame_header(opcode, sum(map(len, parts))), *parts)
        except ConnectionError as error:
            self._gone.set()
            raise ClientGoneError("the WebSocket's client has gone") from error

    async def close(self, code: CloseCode | None = None, reason: str = "") -> None:
        """Send what is waiting, say goodbye, and close. Nobody may be in `receive`. Succeeds if repeated.

        Without a code the end is a normal one, unless the session is cancelled, which is how a daemon stops.
        """
        self._gone.set()
        if code is None:
            task = asyncio.current_task()
            leaving = task is not None and task.cancelling()
            code = CloseCode.GOING_AWAY if leaving else CloseCode.NORMAL_CLOSURE
        await self._end(_close_payload(code, reason))
        await self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._gone.set()
        self._closing = True
        self._keeping_alive.cancel()
        self._wire.abort()

    async def gone(self) -> None:
        """Return when the client has gone, or the connection was closed."""
        await self._gone.wait()

    async def _keep_alive(self) -> None:
        """Answer pings, and send some."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._heartbeat):
                        await self._pinged.wait()
                except TimeoutError:
                    await self._wire.write(frame_header(Opcode.PING, 0))
                else:
                    self._pinged.clear()
                    await self._wire.write(frame_header(Opcode.PONG, len(self._ping)), self._ping)
        except ConnectionError:
            self._gone.set()


def _close_payload(code: CloseCode, reason: str) -> bytes:
    text = reason.encode()[:MAX_REASON].decode(errors="ignore")
    return Close(code, text).serialize()
