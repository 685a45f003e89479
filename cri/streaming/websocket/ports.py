"""Port-forward over the channels of a WebSocket, as clients did before SPDY was tunnelled; Python's still does.

The ports are those of the request. The i-th has channel 2i for data and 2i+1 for errors, and there is one connection to
each, made at once. Neither side can say that it sends no more; the session ends when all connections have.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from cri.streaming.session import ClientGoneError
from cri.streaming.websocket.codec import ChannelCodec, Piece
from cri.streaming.websocket.connection import WebSocketConnection
from cri.streaming.websocket.pipe import Pipe

PROTOCOLS = (
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
)


class PortConnection:
    """A ForwardedConnection (`cri.streaming.session`) on two channels."""

    def __init__(self, codec: ChannelCodec, port: int, channel: int, news: asyncio.Event) -> None:
        self.port = port
        self.received = Pipe()
        self.closed = False
        self._codec = codec
        self._channel = channel
        self._news = news

    async def greet(self) -> None:
        """Name the port on both channels. Raises ClientGoneError."""
        for channel in (self._channel, self._channel + 1):
            await self._codec.send(channel, self.port.to_bytes(2, "little"))

    async def read(self) -> bytes:
        """The next bytes from the client; empty when the connection has ended. Raises ClientGoneError."""
        return await self.received.get()

    async def write(self, data: bytes) -> None:
        """Give the client bytes, and wait while it has no room. Raises ClientGoneError."""
        if data:
            await self._codec.send(self._channel, data)

    async def finish(self) -> None:
        """No more bytes come from the pod. The client cannot be told, so it is not listened to any more either."""
        self.received.end()

    async def fail(self, message: str) -> None:
        """Tell the client why this connection failed, and end it."""
        with contextlib.suppress(ClientGoneError):
            await self._codec.send(self._channel + 1, message.encode())
        await self.close()

    async def close(self) -> None:
        """Let go of the connection. Succeeds if repeated."""
        self.received.end()
        self.closed = True
        self._news.set()


class PortsSession:
    """A ForwardSession (`cri.streaming.session`) over a WebSocket."""

    def __init__(self, websocket: WebSocketConnection, protocol: str, ports: Sequence[int]) -> None:
        """Use `open`."""
        self._websocket = websocket
        self._codec = ChannelCodec(websocket, protocol)
        self._news = asyncio.Event()
        self._connections = [
            PortConnection(self._codec, port, 2 * index, self._news) for index, port in enumerate(ports)
        ]
        self._waiting = deque(self._connections)
        self._gone = False
        self._reading = asyncio.create_task(self._read(), name="websocket ports")

    @classmethod
    async def open(cls, websocket: WebSocketConnection, protocol: str, ports: Sequence[int]) -> PortsSession:
        """Begin a session; `ports` are at most 127, as a channel's number is a byte. Raises ClientGoneError."""
        session = cls(websocket, protocol, ports)
        try:
            for connection in session._connections:
                await connection.greet()
        except BaseException:
            session.abort()
            raise
        return session

    async def connection(self) -> PortConnection | None:
        """The next port's; None when the client has gone, or all connections have been closed."""
        if self._waiting and not self._gone:
            return self._waiting.popleft()
        while not self._gone and not all(connection.closed for connection in self._connections):
            self._news.clear()
            await self._news.wait()
        return None

    async def close(self) -> None:
        """End the session with all its connections."""
        try:
            for connection in self._connections:
                await connection.close()
            self._reading.cancel()
            await asyncio.wait([self._reading])
            await self._websocket.close()
        finally:
            self.abort()

    def abort(self) -> None:
        """End the session at once."""
        self._reading.cancel()
        self._websocket.abort()

    async def _read(self) -> None:
        try:
            while True:
                await self._take(await self._codec.receive())
        except ClientGoneError:
            pass
        finally:
            for connection in self._connections:
                connection.received.fail()
            self._gone = True
            self._news.set()

    async def _take(self, piece: Piece) -> None:
        index, is_error = divmod(piece.channel, 2)
        if not is_error and index < len(self._connections):
            await self._connections[index].received.put(piece.data)
