"""How a connection becomes a session, and what happens to those that do not."""

import asyncio
import socket

import pytest
import websockets
from structlog.testing import capture_logs

from cri.errors import ResourceExhaustedError
from cri.streaming import head
from cri.streaming import server as server_module
from cri.streaming.grants import Grants
from cri.streaming.server import StreamingServer

V4 = "X-Stream-Protocol-Version: v4.channel.k8s.io"


async def test_spdy_upgrade(server, connect, echo, request_of):
    session = echo()
    client = await connect(server)
    answer = await client.upgrade(request_of(server.offer(session), V4) + b"early")
    assert answer.startswith(b"HTTP/1.1 101 ")
    lines = answer.decode().lower().split("\r\n")
    assert "upgrade: spdy/3.1" in lines
    assert "connection: upgrade" in lines
    assert V4.lower() in lines
    client.writer.write(b" and late")
    client.writer.write_eof()
    assert await client.reader.read(-1) == b"early and late"
    assert session.served == [("spdy", "v4.channel.k8s.io")]


@pytest.mark.parametrize(
    ("headers", "protocol"),
    [
        (["X-Stream-Protocol-Version: v9, v3.channel.k8s.io", V4], "v3.channel.k8s.io"),
        (["x-stream-protocol-version: ,, v5.channel.k8s.io ,v4.channel.k8s.io"], "v4.channel.k8s.io"),
        ([], ""),
        (["X-Stream-Protocol-Version:"], ""),
    ],
)
async def test_the_client_s_order_decides(server, connect, echo, request_of, headers, protocol):
    session = echo()
    client = await connect(server)
    answer = await client.upgrade(request_of(server.offer(session), *headers))
    assert answer.startswith(b"HTTP/1.1 101 ")
    client.writer.write_eof()
    await client.reader.read(-1)
    assert session.served == [("spdy", protocol)]
    assert (b"protocol-version" in answer.lower()) == bool(protocol)


async def test_connection_and_upgrade_are_lists(server, connect, echo, request_of):
    client = await connect(server)
    url = server.offer(echo())
    request = request_of(
        url,
        V4,
        "Connection: keep-alive , uPgRaDe",
        "Upgrade: h2c",
        "Upgrade: foo, spdy/3.1",
        upgrade="",
        method="GET",
    )
    assert (await client.upgrade(request)).startswith(b"HTTP/1.1 101 ")


async def test_no_common_protocol(server, connect, echo, request_of):
    client = await connect(server)
    answer = await client.ask(
        request_of(server.offer(echo()), "X-Stream-Protocol-Version: v9.channel.k8s.io")
    )
    assert answer.startswith(b"HTTP/1.1 403 ")
    accepted = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"x-accepted")]
    assert accepted == [
        b"x-accepted-stream-protocol-versions: v4.channel.k8s.io",
        b"x-accepted-stream-protocol-versions: v3.channel.k8s.io",
    ]
    assert b"connection: close" in answer.lower()
    assert b"v4.channel.k8s.io, v3.channel.k8s.io" in answer.rpartition(b"\r\n")[2]


async def test_a_token_is_for_one_use(server, connect, echo, request_of):
    request = request_of(server.offer(echo()), V4)
    assert (await (await connect(server)).upgrade(request)).startswith(b"HTTP/1.1 101 ")
    answer = await (await connect(server)).ask(request)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"one use" in answer


async def test_a_token_is_for_its_kind(server, connect, echo, request_of):
    url = server.offer(echo()).replace("/exec/", "/attach/")
    assert (await (await connect(server)).ask(request_of(url, V4))).startswith(b"HTTP/1.1 404 ")


async def test_a_wrong_request_does_not_use_up_the_token(server, connect, echo, request_of):
    url = server.offer(echo())
    wrong = [
        (request_of(url, V4, method="PUT"), 405),
        (request_of(url, V4, method="HEAD"), 405),
        (request_of(url, V4, upgrade=""), 400),
        (request_of(url, V4, upgrade="h2c"), 400),
        (request_of(url, V4, "Content-Length: 5") + b"hello", 400),
        (request_of(url, V4, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n", 400),
    ]
    for request, status in wrong:
        answer = await (await connect(server)).ask(request)
        assert answer.startswith(b"HTTP/1.1 %d " % status), request
        assert url.rpartition("/")[2].encode() not in answer
    assert (await (await connect(server)).upgrade(request_of(url, V4))).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("together", [True, False])
async def test_an_empty_body_in_chunks(server, connect, echo, request_of, together):
    client = await connect(server)
    head, body = request_of(server.offer(echo()), V4, "Transfer-Encoding: chunked"), b"0\r\n\r\n"
    if not together:
        client.writer.write(head)
        await asyncio.sleep(0.05)
    answer = await client.upgrade((head if together else b"") + body + b"early")
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert await client.reader.readexactly(5) == b"early"


async def test_websocket_upgrade(server, echo):
    session = echo()
    url = server.offer(session).replace("http", "ws")
    wanted = ["v9.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"]
    async with websockets.connect(url, subprotocols=wanted, origin="http://elsewhere") as client:
        assert client.subprotocol == "v4.channel.k8s.io"
        assert client.protocol.extensions == []
        await client.send(b"hello")
        assert await client.recv() == b"hello"
    assert session.served == [("websocket", "v4.channel.k8s.io")]


async def test_websocket_without_a_common_protocol(server, echo):
    for wanted in (["v9.channel.k8s.io"], None):
        url = server.offer(echo()).replace("http", "ws")
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(url, subprotocols=wanted):
                pass
        assert refused.value.response.status_code == 403


async def test_a_protocol_with_a_slash(server, connect, echo, request_of):
    client = await connect(server)
    answer = await client.upgrade(
        request_of(
            server.offer(echo()),
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io",
            method="GET",
            upgrade="websocket",
        )
    )
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
    assert b"Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io" in answer


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Sec-WebSocket-Version: 12", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
        ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: short"],
        ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: ä"],
    ],
)
async def test_a_bad_websocket_handshake(server, connect, echo, request_of, headers):
    session = echo(websocket_protocols=("",))
    request = request_of(server.offer(session), *headers, method="GET", upgrade="websocket")
    assert (await (await connect(server)).ask(request)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\n bad\x00: fold\r\n\r\n", b"400"),
        (b"GET /exec/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * 21000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * 1_000_000, b"431"),
        (b"a" * 100_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000, b"431"),
    ],
)
async def test_garbage(server, connect, garbage, status):
    answer = await (await connect(server)).ask(garbage)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in answer.lower()


async def test_slow_loris(server, connect, monkeypatch):
    monkeypatch.setattr(head, "HEAD_TIME", 0.3)
    client = await connect(server)
    answering = asyncio.create_task(client.reader.read(-1))
    for byte in b"GET /exec/abc HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
        client.writer.write(bytes((byte,)))
        await asyncio.sleep(0.01)
    assert (await answering).startswith(b"HTTP/1.1 408 ")


async def test_a_head_in_single_bytes(server, connect, echo, request_of):
    client = await connect(server)
    for byte in request_of(server.offer(echo()), V4) + b"x":
        client.writer.write(bytes((byte,)))
        await asyncio.sleep(0)
    assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert await client.reader.readexactly(1) == b"x"


async def test_no_token_reaches_a_log(server, connect, echo, request_of):
    session = echo(fails=RuntimeError("this session fails"))
    urls = [server.offer(echo()), server.offer(session), server.offer(echo())]
    with capture_logs() as logs:
        await (await connect(server)).ask(request_of(urls[0], "X-Stream-Protocol-Version: v9"))
        await (await connect(server)).ask(request_of(urls[1], V4))
        await (await connect(server)).ask(request_of(urls[2]).replace(b" HTTP/1.1", b" \x01HTTP/1.1"))
    assert [entry["log_level"] for entry in logs] == ["info", "error", "info"]
    assert not any(url.rpartition("/")[2] in str(logs) for url in urls)


async def test_a_session_that_fails_ends_its_own_connection_only(server, connect, echo, request_of):
    with capture_logs() as logs:
        client = await connect(server)
        answer = await client.ask(request_of(server.offer(echo(fails=RuntimeError("broken"))), V4))
        assert answer.startswith(b"HTTP/1.1 101 ")
    assert [entry["event"] for entry in logs] == ["a streaming session failed"]
    assert (await (await connect(server)).upgrade(request_of(server.offer(echo()), V4))).startswith(
        b"HTTP/1.1 101"
    )


async def test_too_many_connections(serve, connect, echo, request_of):
    server = await serve(connections=2)
    first = await connect(server)
    await first.upgrade(request_of(server.offer(echo()), V4))
    await connect(server)
    with capture_logs() as logs:
        for _ in range(5):
            assert await (await connect(server)).ask(b"") == b""
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("too many streaming connections, more are closed", "warning")
    ]
    first.writer.write(b"still here")
    assert await first.reader.readexactly(10) == b"still here"
    first.writer.close()
    while server.connections == 2:
        await asyncio.sleep(0.01)
    assert (await (await connect(server)).upgrade(request_of(server.offer(echo()), V4))).startswith(
        b"HTTP/1.1 101"
    )


async def test_connections_that_ask_for_nothing_make_room(serve, connect, echo, request_of, monkeypatch):
    monkeypatch.setattr(server_module, "ASKING_TIME", 0.2)
    server = await serve(unasked=4)
    asked = await connect(server)
    await asked.upgrade(request_of(server.offer(echo()), V4))
    silent = [await connect(server) for _ in range(8)]
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            client = await connect(server)
            assert (await client.upgrade(request_of(server.offer(echo()), V4))).startswith(b"HTTP/1.1 101 ")
    assert {entry["event"] for entry in logs} == {
        "too many streaming connections that ask for nothing, the oldest is closed"
    }
    async with asyncio.timeout(1):
        assert [await one.reader.read() for one in silent[:4]] == [b""] * 4
    assert not silent[-1].reader.at_eof()
    assert server.connections <= 2 + 4
    asked.writer.write(b"still here")
    assert await asked.reader.readexactly(10) == b"still here"


async def test_many_who_ask_at_once_are_all_served(serve, connect, echo, request_of):
    server = await serve(unasked=4)
    clients = [await connect(server) for _ in range(100)]
    async with asyncio.timeout(10):
        answers = await asyncio.gather(
            *(client.upgrade(request_of(server.offer(echo()), V4)) for client in clients)
        )
    assert all(answer.startswith(b"HTTP/1.1 101 ") for answer in answers)


async def test_a_flood_of_requests_for_urls(serve, echo):
    server = await serve(grants=Grants(2))
    server.offer(echo())
    server.offer(echo())
    with pytest.raises(ResourceExhaustedError):
        server.offer(echo())


async def test_stop_leaves_sessions_time_and_then_cancels_them(serve, connect, echo, request_of):
    server = await serve()
    quick, endless = echo(), echo()
    clients = []
    for session in (quick, endless):
        clients.append(await connect(server))
        await clients[-1].upgrade(request_of(server.offer(session), V4))
    stopping = asyncio.create_task(server.stop(0.3))
    await asyncio.sleep(0.1)
    with pytest.raises(OSError):
        await connect(server)
    clients[0].writer.write(b"end")
    clients[0].writer.write_eof()
    assert await clients[0].reader.read(-1) == b"end"
    await stopping
    assert (quick.cancelled, endless.cancelled) == (False, True)


async def test_stop_does_not_wait_for_clients_that_say_nothing(serve, connect):
    server = await serve()
    for _ in range(20):
        await connect(server)
    async with asyncio.timeout(2):
        await server.stop()


async def test_no_session_outlives_stop(serve, connect, echo, request_of, monkeypatch):
    """Who neither reads nor closes was left behind with a session that still said goodbye."""
    monkeypatch.setattr(server_module, "CANCEL_TIME", 0.2)
    ended = asyncio.Event()

    class Polite(echo):
        async def over_spdy(self, wire, protocol):
            try:
                await asyncio.Event().wait()
            finally:
                while await wire.read():
                    pass
                ended.set()

    server = await serve()
    client = await connect(server)
    await client.upgrade(request_of(server.offer(Polite()), V4))
    with capture_logs() as logs:
        async with asyncio.timeout(3):
            await server.stop()
    assert ended.is_set()
    assert server.connections == 0
    assert logs == []


async def test_a_websocket_is_told_that_the_server_goes(serve, echo):
    class Polite(echo):
        async def over_websocket(self, websocket, protocol):
            try:
                await asyncio.Event().wait()
            finally:
                await websocket.close()

    server = await serve()
    url = server.offer(Polite()).replace("http", "ws")
    async with websockets.connect(url, subprotocols=["v4.channel.k8s.io"]) as client:
        stopping = asyncio.create_task(server.stop())
        with pytest.raises(websockets.ConnectionClosedOK):
            await client.recv()
        await stopping
    assert client.close_code == 1001


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        ({"host": "127.0.0.1"}, "http://127.0.0.1:"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:"),
        ({"host": ""}, "http://127.0.0.1:"),
        ({"host": "::"}, "http://[::1]:"),
        ({"host": "::1"}, "http://[::1]:"),
        ({"host": "localhost"}, "http://localhost:"),
    ],
)
async def test_urls(echo, options, beginning):
    server = StreamingServer(**options)
    assert server.offer(echo(kind="portforward")).startswith(f"{beginning}0/portforward/")


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["", "0.0.0.0", "localhost", *(["::1", "::"] if has_ipv6() else [])])
async def test_it_listens_where_its_urls_lead(echo, request_of, host):
    server = StreamingServer(host)
    await server.start()
    assert server.port
    url = server.offer(echo())
    where = url.removeprefix("http://").partition("/")[0].rpartition(":")[0].strip("[]")
    reader, writer = await asyncio.open_connection(where, server.port)
    writer.write(request_of(url, V4))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.close()
    await server.stop()


async def test_a_port_that_is_taken(serve):
    taken = await serve()
    with pytest.raises(OSError):
        await StreamingServer("127.0.0.1", taken.port).start()


async def test_keepalive_and_nodelay(server, connect, echo, request_of, monkeypatch):
    tuned = []
    monkeypatch.setattr(
        server_module,
        "_tune",
        lambda connection, tune=server_module._tune: (tune(connection), tuned.append(connection.dup())),
    )
    await (await connect(server)).upgrade(request_of(server.offer(echo()), V4))
    assert tuned[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert tuned[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    tuned[0].close()


async def test_connections_that_are_reset_leave_nothing(server, connect, echo, request_of):
    for _ in range(300):
        client = await connect(server)
        await client.upgrade(request_of(server.offer(echo()), V4))
        client.writer.transport.abort()
    while server.connections:
        await asyncio.sleep(0.01)
