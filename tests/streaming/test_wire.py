from __future__ import annotations

import asyncio
import socket

import pytest

from cri.streaming import wire as wires
from cri.streaming.wire import SocketWire

SIZE = 8_000_000


@pytest.fixture
async def ends():
    """A wire, and its client's socket, which takes little at a time."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    yield SocketWire(reader, writer, b"early"), theirs
    theirs.close()
    writer.transport.abort()
    await asyncio.sleep(0)


async def read_all(client: socket.socket) -> int:
    loop, size = asyncio.get_running_loop(), 0
    while data := await loop.sock_recv(client, 1 << 20):
        size += len(data)
    return size


async def test_what_came_early_is_read_first(ends):
    wire, client = ends
    client.send(b"late")
    assert (await wire.read(), await wire.read()) == (b"early", b"late")
    client.shutdown(socket.SHUT_WR)
    assert await wire.read() == b""


async def test_a_writer_waits_for_its_reader(ends):
    wire, client = ends
    writing = asyncio.create_task(wire.write(b"x" * SIZE))
    await asyncio.sleep(0.1)
    assert not writing.done()
    reading = asyncio.create_task(read_all(client))
    await writing
    closing = asyncio.create_task(wire.close())
    assert await reading == SIZE
    client.close()
    await closing


async def test_a_client_that_stalls_at_the_end_gets_everything(ends, monkeypatch):
    monkeypatch.setattr(wires, "LINGER", 0.1)
    wire, client = ends
    writing = asyncio.create_task(wire.write(b"x" * 600_000))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(wire.close())
    await asyncio.sleep(0.5)  # longer than it lingers
    assert await read_all(client) == 600_000
    await closing
    await asyncio.gather(writing, return_exceptions=True)


async def test_a_client_that_takes_nothing_is_given_up(ends, monkeypatch):
    monkeypatch.setattr(wires, "STALL", 0.2)
    wire, client = ends
    writing = asyncio.create_task(wire.write(b"x" * SIZE))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await wire.close()
    with pytest.raises(ConnectionError):
        await writing
    assert await read_all(client) < SIZE
