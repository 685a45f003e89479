"""Exec and attach over a WebSocket: stdin, stdout, stderr, error and resize as channels 0 to 4."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import deque

from websockets.frames import CloseCode

from cri.sandbox.spec import TerminalSize
from cri.streaming.resizing import MAX_SIZE, terminal_size
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams
from cri.streaming.status import error_stream
from cri.streaming.websocket.codec import ChannelCodec, Piece
from cri.streaming.websocket.connection import WebSocketConnection
from cri.streaming.websocket.pipe import Pipe

V5 = "v5.channel.k8s.io"

PROTOCOLS = (
    V5,
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
)

SIZES_KEPT = 4
"""Sizes that nobody has asked for yet; of more only the newest matter."""


class Channel(enum.IntEnum):
    """The channels of remote commands (k8s.io/apimachinery, pkg/util/remotecommand)."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4
    CLOSE = 255
    """v5: the message's only byte is the channel on which the client sends no more."""


OUTPUTS = {Output.STDOUT: Channel.STDOUT, Output.STDERR: Channel.STDERR}


class ChannelSession:
    """A CommandSession (`cri.streaming.session`) over a WebSocket."""

    def __init__(self, websocket: WebSocketConnection, protocol: str, streams: Streams) -> None:
        """Use `open`."""
        self._websocket = websocket
        self._codec = ChannelCodec(websocket, protocol)
        self._protocol = protocol
        self._wanted = {
            output
            for output, wanted in ((Output.STDOUT, streams.stdout), (Output.STDERR, streams.stderr))
            if wanted
        }
        self._has_stdin = streams.stdin
        self._stdin = Pipe()
        if not streams.stdin:
            self._stdin.end()
        self._sizes: deque[TerminalSize] = deque(maxlen=SIZES_KEPT)
        self._size_news = asyncio.Event()
        self._more_sizes = streams.tty
        self._small = b""
        """The message on a channel of short messages, as far as it has come."""
        self._reading = asyncio.create_task(self._read(), name="websocket channels")

    @classmethod
    async def open(cls, websocket: WebSocketConnection, protocol: str, streams: Streams) -> ChannelSession:
        """Begin a session. Raises ClientGoneError."""
        session = cls(websocket, protocol, streams)
        # Clients wait for an empty message, on the first channel that they read, to know that the session stands.
        first = next((OUTPUTS[output] for output in OUTPUTS if output in session._wanted), Channel.ERROR)
        try:
            await session._codec.send(first, b"")
        except BaseException:
            session.abort()
            raise
        return session

    async def stdin(self) -> bytes:
        """The next bytes of stdin; empty at its end, which only v5 can tell. Raises ClientGoneError."""
        return await self._stdin.get()

    async def resized(self) -> TerminalSize | None:
        """The next size of the client's terminal; None when no more can come."""
        while not self._sizes and self._more_sizes:
            self._size_news.clear()
            await self._size_news.wait()
        return self._sizes.popleft() if self._sizes else None

    async def send(self, output: Output, data: bytes) -> None:
        """Give the client output, and wait while it has no room. Dropped if not asked for. Raises ClientGoneError."""
        if data and output in self._wanted:
            await self._codec.send(OUTPUTS[output], data)

    async def finish(self, outcome: Outcome) -> None:
        """Tell how it ended, and close the session. Succeeds if the client has gone."""
        # From here on stdin is read and dropped: a client that still sends may read only when it is done with that.
        self._stdin.end()
        try:
            if message := error_stream(outcome, self._protocol):
                with contextlib.suppress(ClientGoneError):
                    await self._codec.send(Channel.ERROR, message)
            await self._stop_reading()
            await self._websocket.close()
        finally:
            self.abort()

    async def gone(self) -> None:
        """Return when the client has gone."""
        await self._websocket.gone()

    def abort(self) -> None:
        """End the session at once."""
        self._reading.cancel()
        self._websocket.abort()

    async def _stop_reading(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        try:
            while True:
                await self._take(await self._codec.receive())
        except ClientGoneError:
            pass
        finally:
            self._stdin.fail()
            self._end_sizes()

    async def _take(self, piece: Piece) -> None:
        if piece.channel == Channel.STDIN:
            await self._stdin.put(piece.data)
            return
        is_close = piece.channel == Channel.CLOSE and self._protocol == V5
        if not is_close and piece.channel != Channel.RESIZE:
            return  # nothing else is the client's to write to
        self._small += piece.data
        if len(self._small) > MAX_SIZE:
            raise await self._breach("a message about a terminal's size, or a channel's end, is too long")
        if piece.last:
            message, self._small = self._small, b""
            if is_close:
                await self._close_channel(message)
            else:
                self._resize(message)

    async def _close_channel(self, message: bytes) -> None:
        if len(message) != 1 or message[0] > Channel.RESIZE:
            raise await self._breach("the end of a channel that there is not")
        if message[0] == Channel.STDIN:
            self._stdin.end()
        elif message[0] == Channel.RESIZE:
            self._end_sizes()

    async def _breach(self, message: str) -> ClientGoneError:
        return await self._websocket.fail(CloseCode.PROTOCOL_ERROR, message)

    def _resize(self, message: bytes) -> None:
        if (size := terminal_size(message)) is not None and self._more_sizes:
            self._sizes.append(size)
            self._size_news.set()

    def _end_sizes(self) -> None:
        self._more_sizes = False
        self._size_news.set()
