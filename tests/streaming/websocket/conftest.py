"""WebSockets over a wire in memory, with the library's own client at the other end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from websockets.frames import Opcode
from websockets.protocol import OPEN, Protocol, Side

from cri.streaming.websocket.connection import WebSocketConnection


class MemoryWire:
    """A wire whose client is the test: it puts bytes, and gives room for answers or none."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.written = bytearray()
        self.room = asyncio.Event()
        self.room.set()
        self.gone = False
        self.closed = False

    async def read(self) -> bytes:
        return await self.incoming.get()

    async def write(self, *parts: bytes) -> None:
        if self.gone:
            raise ConnectionError("gone")
        for part in parts:
            self.written += part
        await self.room.wait()

    async def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


@dataclass
class Peer:
    """The client's end."""

    wire: MemoryWire
    protocol: Protocol
    seen: int = 0
    frames: list = field(default_factory=list)

    def push(self, data: bytes) -> None:
        self.wire.incoming.put_nowait(data)

    def flush(self, step: int = 1 << 30) -> None:
        """Let the server have what the client has to send, in pieces."""
        data = b"".join(self.protocol.data_to_send())
        for at in range(0, len(data), step):
            self.push(data[at : at + step])

    def say(self, data: bytes, *, text: bool = False, step: int = 1 << 30) -> None:
        (self.protocol.send_text if text else self.protocol.send_binary)(data)
        self.flush(step)

    def leave(self) -> None:
        self.wire.gone = True
        self.push(b"")

    def got(self) -> list:
        """All frames that the server has sent until now."""
        new = bytes(self.wire.written[self.seen :])
        self.seen += len(new)
        if new:
            self.protocol.receive_data(new)
            self.frames += self.protocol.events_received()
        assert self.protocol.parser_exc is None
        return self.frames

    def messages(self) -> list[bytes]:
        return [bytes(frame.data) for frame in self.got() if frame.opcode in (Opcode.BINARY, Opcode.TEXT)]

    async def until(self, condition) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)


@pytest.fixture
def peer():
    return Peer(MemoryWire(), Protocol(Side.CLIENT, state=OPEN, max_size=None))


@pytest.fixture
async def websocket(peer):
    connection = WebSocketConnection(peer.wire)
    yield connection
    connection.abort()
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("websocket")]


@pytest.fixture
def message():
    """Receives a whole message."""

    async def receive(connection) -> bytes:
        data = b""
        async with asyncio.timeout(5):
            while True:
                fragment = await connection.receive()
                assert fragment.first == (not data)
                data += fragment.data
                if fragment.last:
                    return data

    return receive
