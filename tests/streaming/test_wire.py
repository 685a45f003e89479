from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from cri.streaming import wire as wires
from cri.streaming.wire import SocketWire

SIZE = 3_000_000

Connect = Callable[
    ..., AbstractAsyncContextManager[tuple[SocketWire, asyncio.StreamReader, asyncio.StreamWriter]]
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=localhost", "-days", "1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture(params=["tcp", "tls"])
def connect(request, certificate) -> Connect:
    """Makes a wire and its client, over TCP with little room in the kernel, and over TLS too."""

    @contextlib.asynccontextmanager
    async def make(**options: float) -> AsyncIterator[tuple]:
        ours = theirs = None
        if request.param == "tls":
            ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ours.load_cert_chain(*certificate)
            theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            theirs.check_hostname, theirs.verify_mode = False, ssl.CERT_NONE
        accepted: asyncio.Queue[SocketWire] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.put_nowait(SocketWire(reader, writer, **options))

        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        async with await asyncio.start_server(accept, sock=listener, ssl=ours):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
            reader, writer = await asyncio.open_connection(
                sock=client, ssl=theirs, server_hostname="localhost" if theirs else None, limit=1024
            )
            wire = await accepted.get()
            try:
                yield wire, reader, writer
            finally:
                writer.transport.abort()
                wire.abort()
                await asyncio.sleep(0)

    return make


async def write(wire: SocketWire, size: int) -> None:
    """As sessions do it: a TLS transport hands any piece on before it looks how much is waiting."""
    for _ in range(size // 10_000):
        await wire.write(b"x" * 10_000)


async def read_slowly(reader: asyncio.StreamReader, pause: float = 0.0) -> int:
    size = 0
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(32768):
            size += len(data)
            await asyncio.sleep(pause)
    return size


async def test_what_came_early_is_read_first(connect):
    async with connect(early=b"early") as (wire, _, writer):
        writer.write(b"late")
        assert (await wire.read(), await wire.read()) == (b"early", b"late")
        writer.transport.abort()
        assert await wire.read() == b""


async def test_a_writer_waits_for_its_reader(connect):
    async with connect() as (wire, reader, writer):
        writing = asyncio.create_task(write(wire, SIZE))
        await asyncio.sleep(0.1)
        assert not writing.done()
        reading = asyncio.create_task(read_slowly(reader))
        await writing
        closing = asyncio.create_task(wire.close())
        assert await reading == SIZE
        writer.close()
        await closing


async def test_the_end_does_not_take_long(connect):
    async with connect() as (wire, reader, writer):
        await wire.write(b"bye")
        closing = asyncio.create_task(wire.close())
        async with asyncio.timeout(1):
            assert await read_slowly(reader) == 3
            writer.close()
            await closing


async def test_a_slow_client_that_sends_something_gets_everything(connect, monkeypatch):
    """Once the server's side is closed, the next byte of the client makes its kernel reset the connection."""
    monkeypatch.setattr(wires, "LINGER", 0.2)
    async with connect() as (wire, reader, writer):

        async def ping() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"ping")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        pinging = asyncio.create_task(ping())
        reading = asyncio.create_task(read_slowly(reader, pause=0.03))
        began = asyncio.get_running_loop().time()
        await write(wire, 1_000_000)
        closing = asyncio.create_task(wire.close())
        assert await reading == 1_000_000
        assert asyncio.get_running_loop().time() - began > 2 * wires.LINGER
        pinging.cancel()
        await asyncio.gather(pinging, return_exceptions=True)
        await closing


async def test_a_client_that_has_everything_and_stays_is_left(connect, monkeypatch):
    monkeypatch.setattr(wires, "LINGER", 0.2)
    async with connect() as (wire, _, _), asyncio.timeout(2):
        await wire.write(b"bye")
        await wire.close()


async def test_a_client_that_takes_nothing_is_given_up(connect):
    async with connect(patience=0.2) as (wire, _, _), asyncio.timeout(5):
        with pytest.raises(ConnectionError, match=r"taken nothing for 0\.2 s"):
            await write(wire, SIZE)


async def test_a_client_that_takes_nothing_of_the_end_is_given_up(connect):
    async with connect(patience=0.2) as (wire, reader, _), asyncio.timeout(5):
        await write(wire, 500_000)
        await wire.close()
        assert await read_slowly(reader) < 500_000
