"""A streaming server on loopback whose sessions say what they got."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from cri.streaming.server import StreamingServer


@dataclass
class Echo:
    """A session that sends back what it reads, after telling its carrier."""

    kind: str = "exec"
    spdy_protocols: tuple[str, ...] = ("v4.channel.k8s.io", "v3.channel.k8s.io", "")
    websocket_protocols: tuple[str, ...] = (
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "SPDY/3.1+portforward.k8s.io",
    )
    fails: Exception | None = None
    served: list[tuple[str, str]] = field(default_factory=list)
    cancelled: bool = False

    async def over_spdy(self, wire, protocol):
        self.served.append(("spdy", protocol))
        if self.fails:
            raise self.fails
        try:
            while data := await wire.read():
                await wire.write(data)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await wire.close()

    async def over_websocket(self, websocket, protocol):
        self.served.append(("websocket", protocol))
        while True:
            fragment = await websocket.receive()
            await websocket.send(fragment.data, text=fragment.text)


@dataclass
class Raw:
    """A client that sends what it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, data: bytes) -> bytes:
        """Send, and read to the end."""
        self.writer.write(data)
        async with asyncio.timeout(20):
            try:
                return await self.reader.read(-1)
            except ConnectionResetError:
                return b""

    async def upgrade(self, data: bytes) -> bytes:
        """Send, and read the head of the answer."""
        self.writer.write(data)
        async with asyncio.timeout(20):
            return await self.reader.readuntil(b"\r\n\r\n")


@pytest.fixture
def echo():
    return Echo


@pytest.fixture
async def serve():
    """Starts servers, and stops them in the end; nothing of them is left."""
    servers = []

    async def start(**options):
        server = StreamingServer("127.0.0.1", 0, **options)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()
        assert server.connections == 0
    await asyncio.sleep(0)
    assert not [
        task for task in asyncio.all_tasks() if task.get_name().startswith(("streaming", "websocket"))
    ]


@pytest.fixture
async def server(serve):
    return await serve()


@pytest.fixture
async def connect():
    """Connects raw clients to a server."""
    clients = []

    async def open_(server, **options):
        client = Raw(*await asyncio.open_connection("127.0.0.1", server.port, **options))
        clients.append(client)
        return client

    yield open_
    for client in clients:
        client.writer.transport.abort()
    await asyncio.sleep(0)


@pytest.fixture
def request_of():
    """Makes the request for a URL's stream."""

    def make(url, *headers, method="POST", upgrade="SPDY/3.1", version="1.1"):
        lines = [f"{method} {urlsplit(url).path} HTTP/{version}", "Host: x"]
        if upgrade:
            lines += [f"Upgrade: {upgrade}", "Connection: Upgrade"]
        return "\r\n".join([*lines, *headers, "", ""]).encode()

    return make
