"""Port-forward over channels, as Python's client does it."""

import asyncio
import base64

import pytest
import websockets

from cri.streaming.server import StreamingServer
from cri.streaming.session import ClientGoneError
from cri.streaming.websocket.ports import PROTOCOLS, PortsSession


@pytest.fixture
async def begin(websocket):
    sessions = []

    async def start(*ports):
        sessions.append(await PortsSession.open(websocket, "v4.channel.k8s.io", ports))
        return sessions[0]

    yield start
    for session in sessions:
        session.abort()
    await asyncio.sleep(0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_every_protocol(protocol):
    class Session:
        kind = "portforward"
        spdy_protocols = ()
        websocket_protocols = PROTOCOLS

        async def over_websocket(self, websocket, protocol):
            session = await PortsSession.open(websocket, protocol, [80, 8443])
            while (connection := await session.connection()) is not None:
                if connection.port == 8443:
                    await connection.fail("refused")
                    continue
                await connection.write((await connection.read()).upper())
                await connection.finish()
                assert await connection.read() == b""
                await connection.close()
            await session.close()

    def put(channel, data):
        return (
            (b"%d" % channel + base64.b64encode(data)).decode()
            if "base64" in protocol
            else bytes((channel,)) + data
        )

    server = StreamingServer()
    await server.start()
    url = server.offer(Session()).replace("http", "ws")
    async with websockets.connect(url, subprotocols=[protocol] if protocol else None) as client:
        await client.send(put(1, b"not for the client to write"))
        await client.send(put(9, b"no such channel"))
        await client.send(put(0, b"get"))
        messages = [message async for message in client]
    assert client.close_code == 1000
    greetings = [put(0, b"\x50\x00"), put(1, b"\x50\x00"), put(2, b"\xfb\x20"), put(3, b"\xfb\x20")]
    assert messages[:4] == greetings
    assert sorted(messages[4:]) == [put(0, b"GET"), put(3, b"refused")]
    await server.stop()


async def test_the_client_leaves(peer, begin):
    session = await begin(80, 81)
    first = await session.connection()
    peer.say(b"\x00data")
    peer.leave()
    assert await first.read() == b"data"
    with pytest.raises(ClientGoneError):
        await first.read()
    assert await session.connection() is None
    await session.close()


async def test_it_ends_when_all_connections_have(peer, begin):
    session = await begin(80, 81)
    connections = [await session.connection() for _ in range(2)]
    waiting = asyncio.create_task(session.connection())
    await connections[0].close()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await connections[1].close()
    assert await waiting is None
    await session.close()
    assert peer.wire.closed


async def test_a_port_that_nobody_reads_stops_the_client(peer, begin):
    session = await begin(80)
    connection = await session.connection()
    for _ in range(200):
        peer.say(b"\x00" + bytes(10_000))
    await asyncio.sleep(0.05)
    assert peer.wire.incoming.qsize() > 150
    total = 0
    while total < 2_000_000:
        total += len(await connection.read())
