from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Iterator

import pytest

from cri.streaming import forwarding
from cri.streaming.forwarding import run_forward
from cri.streaming.session import ClientGoneError


class Connection:
    """A ForwardedConnection, with the client's side as attributes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.output = b""
        self.error = ""
        self.finished = asyncio.Event()
        self.closed = asyncio.Event()

    async def read(self) -> bytes:
        data = await self.input.get()
        if data is None:
            raise ClientGoneError
        return data

    async def write(self, data: bytes) -> None:
        self.output += data

    async def finish(self) -> None:
        self.finished.set()

    async def fail(self, message: str) -> None:
        self.error = message

    async def close(self) -> None:
        self.closed.set()


class Session:
    """A ForwardSession."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Connection | None] = asyncio.Queue()
        self.closed = False

    async def connection(self) -> Connection | None:
        return await self.connections.get()

    async def close(self) -> None:
        self.closed = True

    def open(self, port: int, *data: bytes | None) -> Connection:
        made = Connection(port)
        for one in data:
            made.input.put_nowait(one)
        self.connections.put_nowait(made)
        return made


@pytest.fixture
async def session(warden):
    made = Session()
    running = asyncio.create_task(run_forward(warden, "s" * 64, (), made, 60))
    yield made
    made.connections.put_nowait(None)
    async with asyncio.timeout(10):
        await running
    assert made.closed


@pytest.fixture(params=["127.0.0.1", "::1"])
async def echo(request) -> Iterator[int]:
    """A server that returns what it got, in upper case, after its client's end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, request.param, 0) as server:
        yield server.sockets[0].getsockname()[1]


async def ends(connection: Connection) -> None:
    async with asyncio.timeout(10):
        await connection.closed.wait()


async def test_both_directions_and_the_half_close(session, echo):
    connection = session.open(echo, b"hello ", b"pod", b"")
    await ends(connection)
    assert (connection.output, connection.error) == (b"HELLO POD", "")
    assert connection.finished.is_set()


async def test_many_at_a_time(session, echo):
    texts = [f"number {number} ".encode() * 1000 for number in range(50)]
    connections = [session.open(echo, text, b"") for text in texts]
    for text, connection in zip(texts, connections, strict=True):
        await ends(connection)
        assert connection.output == text.upper()


async def test_much_data(session, echo):
    chunk = b"abcdefgh" * 32768
    connection = session.open(echo, *[chunk] * 40, b"")
    await ends(connection)
    assert hashlib.sha256(connection.output).digest() == hashlib.sha256(chunk.upper() * 40).digest()


async def test_a_refused_port_is_told_of_and_others_go_on(session, echo):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    refused, fine = session.open(port), session.open(echo, b"x", b"")
    await ends(refused)
    await ends(fine)
    assert "connection refused" in refused.error
    assert str(port) in refused.error
    assert fine.output == b"X"


async def test_a_client_that_goes_in_the_middle(session, echo):
    connection = session.open(echo, b"half", None)
    await ends(connection)
    assert connection.output == b""


async def test_only_the_ports_that_were_asked_for(warden, echo):
    session = Session()
    running = asyncio.create_task(run_forward(warden, "s" * 64, (echo,), session, 60))
    allowed, other = session.open(echo, b"x", b""), session.open(1)
    await ends(allowed)
    await ends(other)
    assert allowed.output == b"X"
    assert "port 1 is none of those" in other.error
    session.connections.put_nowait(None)
    await running


async def test_a_silent_port(session, warden, monkeypatch):
    monkeypatch.setattr(forwarding, "CONNECT_PATIENCE", 0.1)
    monkeypatch.setattr(forwarding, "LOOPBACK", ((socket.AF_INET, "127.0.0.1"),))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        port = deaf.getsockname()[1]
        fill = [socket.socket() for _ in range(4)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        connection = session.open(port)
        await ends(connection)
        for one in fill:
            one.close()
    assert "no answer within" in connection.error


async def test_the_end_of_the_session_ends_its_connections(warden, echo):
    session = Session()
    running = asyncio.create_task(run_forward(warden, "s" * 64, (), session, 60))
    connection = session.open(echo, b"and then nothing")
    await asyncio.sleep(0.1)
    session.connections.put_nowait(None)
    await running
    await ends(connection)


async def test_a_session_in_which_nothing_moves_is_ended(warden, echo):
    session = Session()
    connection = session.open(echo, b"half a")
    async with asyncio.timeout(5):
        await run_forward(warden, "s" * 64, (), session, 0.3)
    assert session.closed
    await ends(connection)
