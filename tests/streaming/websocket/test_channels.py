"""Exec and attach: every protocol, by a client in memory and by the library's over loopback."""

import asyncio
import base64
import json
import random
import socket
import struct

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st

from cri.sandbox.spec import TerminalSize
from cri.streaming.server import StreamingServer
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams
from cri.streaming.websocket.channels import PROTOCOLS, V5, ChannelSession
from cri.streaming.websocket.codec import ChannelCodec
from cri.streaming.websocket.frames import Fragment
from cri.streaming.websocket.pipe import LIMIT

ALL = Streams(stdin=True, stdout=True, stderr=True, tty=False)
TERMINAL = Streams(stdin=True, stdout=True, stderr=False, tty=True)
V4 = "v4.channel.k8s.io"
V4_BASE64 = "v4.base64.channel.k8s.io"


@pytest.fixture
async def begin(websocket):
    """Begins sessions, and ends them."""
    sessions = []

    async def start(protocol=V5, streams=ALL):
        sessions.append(await ChannelSession.open(websocket, protocol, streams))
        return sessions[0]

    yield start
    for session in sessions:
        session.abort()
    await asyncio.sleep(0)


class Text:
    """What a client of a protocol puts into messages, and finds there."""

    def __init__(self, protocol):
        self.base64 = "base64" in protocol

    def put(self, channel, data):
        return (
            (b"%d" % channel + base64.b64encode(data)).decode() if self.base64 else bytes((channel,)) + data
        )

    def get(self, message):
        if self.base64:
            assert isinstance(message, str)
            return int(message[0]), base64.b64decode(message[1:], validate=True)
        assert isinstance(message, bytes)
        return message[0], message[1:]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("outcome", "status", "old"),
    [
        (Outcome(), {"status": "Success"}, None),
        (
            Outcome(exit_code=137),
            {"reason": "NonZeroExitCode"},
            b"command terminated with non-zero exit code: 137",
        ),
        (Outcome(error="no such file"), {"reason": "InternalError", "code": 500}, b"no such file"),
    ],
)
async def test_a_command_by_every_protocol(protocol, outcome, status, old):
    class Session:
        kind = "exec"
        spdy_protocols = ()
        websocket_protocols = PROTOCOLS

        async def over_websocket(self, websocket, protocol):
            session = await ChannelSession.open(websocket, protocol, TERMINAL)
            assert await session.resized() == TerminalSize(80, 24)
            for _ in range(2):
                await session.send(Output.STDOUT, await session.stdin())
            await session.send(Output.STDERR, b"nobody has asked for this")
            await session.finish(outcome)

    server = StreamingServer()
    await server.start()
    text = Text(protocol)
    url = server.offer(Session()).replace("http", "ws")
    async with websockets.connect(url, subprotocols=[protocol] if protocol else None) as client:
        assert client.subprotocol == (protocol or None)
        assert text.get(await client.recv()) == (1, b"")
        await client.send(text.put(4, b'{"Width": 80, "Height": 24}\n'))
        await client.send(text.put(0, b"typed"))
        assert text.get(await client.recv()) == (1, b"typed")
        await client.send(text.put(2, b"no channel of the client"))
        await client.send(text.put(0, bytes(range(256)) * 20))
        assert text.get(await client.recv()) == (1, bytes(range(256)) * 20)
        rest = [text.get(message) async for message in client]
    assert client.close_code == 1000
    if not protocol.startswith(("v4.", "v5.")):
        assert rest == ([(3, old)] if old else [])
    else:
        ((channel, message),) = rest
        assert channel == 3
        found = json.loads(message)
        assert {key: found[key] for key in status} == status
        if outcome.exit_code:
            assert found["details"]["causes"] == [{"reason": "ExitCode", "message": "137"}]
        if outcome.error:
            assert outcome.error in found["message"]
    await server.stop()


async def test_the_first_message_is_on_the_first_output(peer, begin):
    await begin(streams=Streams(stdin=True, stdout=False, stderr=True, tty=False))
    assert peer.messages() == [b"\x02"]


async def test_without_outputs_it_is_on_the_error_channel(peer, begin):
    await begin(streams=Streams(stdin=True, stdout=False, stderr=False, tty=False))
    assert peer.messages() == [b"\x03"]


async def test_v5_half_close(peer, begin):
    session = await begin()
    peer.say(b"\x00one")
    peer.say(b"\xff\x00")
    peer.say(b"\x00late")
    assert [await session.stdin(), await session.stdin(), await session.stdin()] == [b"one", b"", b""]
    await session.send(Output.STDERR, b"after the end of stdin")
    assert peer.messages()[-1] == b"\x02after the end of stdin"


async def test_v5_end_of_resizes_and_of_channels_that_are_not_the_client_s(peer, begin):
    session = await begin(streams=TERMINAL)
    for message in (b'\x04{"Width": 1, "Height": 2}', b"\xff\x01", b"\xff\x02", b"\xff\x03", b"\xff\x04"):
        peer.say(message)
    assert await session.resized() == TerminalSize(1, 2)
    assert await session.resized() is None


@pytest.mark.parametrize(
    "message", [b"\xff", b"\xff\x05", b"\xff\xff", b"\xff\x00\x00", b"\xff" + bytes(5000)]
)
async def test_v5_close_signals_that_make_no_sense(peer, begin, message):
    session = await begin()
    peer.say(message)
    with pytest.raises(ClientGoneError):
        await session.stdin()
    await session.gone()
    peer.got()
    assert peer.protocol.close_rcvd.code == 1002


async def test_v4_knows_no_close_signal(peer, begin):
    session = await begin(V4)
    peer.say(b"\xff\x00")
    peer.say(b"\x00data")
    assert await session.stdin() == b"data"


async def test_a_client_that_leaves_has_given_what_it_gave(peer, begin):
    session = await begin(V4)
    peer.say(b"\x00data")
    peer.leave()
    async with asyncio.timeout(1):
        await session.gone()
    assert await session.stdin() == b"data"
    with pytest.raises(ClientGoneError):
        await session.stdin()
    assert await session.resized() is None
    with pytest.raises(ClientGoneError):
        await session.send(Output.STDOUT, b"x")
    await session.finish(Outcome())


async def test_stdin_that_was_not_asked_for(peer, begin):
    session = await begin(streams=Streams(stdin=False, stdout=True, stderr=True, tty=False))
    for _ in range(1000):
        peer.say(b"\x00" + bytes(1000))
    assert await session.stdin() == b""
    await peer.until(peer.wire.incoming.empty)


async def test_stdin_that_nobody_reads_stops_the_client(peer, begin):
    session = await begin()
    for _ in range(200):
        peer.say(b"\x00" + bytes(10_000))
    await asyncio.sleep(0.05)
    assert session._stdin._size < LIMIT + 20_000
    assert peer.wire.incoming.qsize() > 150
    total = 0
    while total < 2_000_000:
        total += len(await session.stdin())
    assert total == 2_000_000


async def test_one_huge_message_is_read_as_it_comes(peer, begin):
    session = await begin()
    peer.say(b"\x00" + bytes(8_000_000), step=100_000)
    total = 0
    while total < 8_000_000:
        await asyncio.sleep(0)
        assert session._stdin._size < LIMIT + 200_000
        total += len(await session.stdin())


async def test_finish_reads_on_so_that_a_client_that_still_sends_can_read(peer, begin):
    session = await begin()
    for _ in range(100):
        peer.say(b"\x00" + bytes(10_000))
    peer.wire.room.clear()
    finishing = asyncio.create_task(session.finish(Outcome(exit_code=1)))
    await peer.until(peer.wire.incoming.empty)
    assert not finishing.done()
    peer.wire.room.set()
    await finishing
    assert b"NonZeroExitCode" in peer.messages()[-1]
    assert peer.wire.closed


@pytest.mark.parametrize("protocol", [V4, V4_BASE64])
async def test_much_output_leaves_turns_to_others(peer, begin, protocol):
    session = await begin(protocol)
    out, err = random.randbytes(200_000), random.randbytes(1000)
    peer.wire.room.clear()
    sending = asyncio.gather(
        session.send(Output.STDERR, err),
        session.send(Output.STDOUT, out),
        session.send(Output.STDERR, err),
    )
    await asyncio.sleep(0.01)
    peer.wire.room.set()
    await sending
    messages = peer.messages()[1:]
    texts = [message.decode() for message in messages] if "base64" in protocol else messages
    got = [Text(protocol).get(message) for message in texts]
    assert b"".join(data for channel, data in got if channel == 1) == out
    assert [channel for channel, _ in got] == [2, 1, 2, 1, 1, 1]
    assert max(len(data) for _, data in got) == 64 * 1024


async def test_sizes_wait_for_who_asks_and_the_newest_are_kept(peer, begin):
    session = await begin(streams=TERMINAL)
    for width in range(1, 100):
        peer.say(b'\x04{"Width":%d,"Height":24}' % width)
    peer.say(b"\x04 nonsense")
    await peer.until(peer.wire.incoming.empty)
    await asyncio.sleep(0)
    sizes = [await session.resized() for _ in range(4)]
    assert sizes[-1] == TerminalSize(99, 24)
    asking = asyncio.create_task(session.resized())
    peer.say(b'\x04{"Width":1,"Height":1}')
    assert await asking == TerminalSize(1, 1)


async def test_no_sizes_without_a_terminal(peer, begin):
    session = await begin()
    peer.say(b'\x04{"Width":1,"Height":1}')
    assert await session.resized() is None


@pytest.mark.parametrize(
    "message",
    [b"[]", b"{}", b"3", b'{"Width":-1,"Height":2}', b'{"Width":0,"Height":0}', b'{"Width":70000,"Height":1}',
     b'{"Width":"1","Height":1}', b'{"Width":1.5,"Height":1}', b"[" * 1000, b"\xff\xfe"],
)  # fmt: skip
async def test_sizes_that_make_no_sense_do_no_harm(peer, begin, message):
    session = await begin(streams=TERMINAL)
    peer.say(b"\x04" + message)
    peer.say(b'\x04{"Width":1,"Height":1}')
    assert await session.resized() == TerminalSize(1, 1)


class Pieces:
    """A WebSocket that brings a message in given fragments."""

    def __init__(self, fragments):
        self.fragments = fragments[::-1]

    async def receive(self):
        return self.fragments.pop()


@given(st.binary(max_size=400), st.lists(st.integers(1, 50)), st.booleans())
def test_base64_in_any_fragments(data, sizes, with_lines):
    encoded = b"1" + (base64.encodebytes(data) if with_lines else base64.b64encode(data))
    texts = []
    for size in sizes:
        if len(encoded) > size:
            texts.append(encoded[:size])
            encoded = encoded[size:]
    texts.append(encoded)
    fragments = [
        Fragment(text, first=number == 0, last=number == len(texts) - 1, text=True)
        for number, text in enumerate(texts)
    ]

    async def decode():
        codec = ChannelCodec(Pieces(fragments), V4_BASE64)
        pieces = [await codec.receive() for _ in fragments]
        assert {piece.channel for piece in pieces} == {1}
        return b"".join(piece.data for piece in pieces)

    assert asyncio.run(decode()) == data


async def test_base64_that_is_none(peer, begin):
    session = await begin(V4_BASE64)
    peer.say(b"0Zm9v", text=True)
    peer.say(b"0Zm=v", text=True)
    assert await session.stdin() == b"foo"
    with pytest.raises(ClientGoneError):
        await session.stdin()
    peer.got()
    assert peer.protocol.close_rcvd.code == 1007


async def test_channels_that_there_are_not(peer, begin):
    session = await begin(V4_BASE64)
    for message in (b"", b"9Zm9v", b"/Zm9v", b"\x00Zm9v", b"0Zm9v"):
        peer.say(message, text=True)
    assert await session.stdin() == b"foo"


async def test_a_connection_that_is_reset():
    ended = asyncio.Event()

    class Session:
        kind = "exec"
        spdy_protocols = ()
        websocket_protocols = (V5,)

        async def over_websocket(self, websocket, protocol):
            session = await ChannelSession.open(websocket, protocol, ALL)
            assert await session.stdin() == b"typed"
            await session.gone()
            with pytest.raises(ClientGoneError):
                await session.stdin()
            await session.finish(Outcome())
            ended.set()

    server = StreamingServer()
    await server.start()
    client = await websockets.connect(server.offer(Session()).replace("http", "ws"), subprotocols=[V5])
    await client.send(b"\x00typed")
    client.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    client.transport.abort()
    async with asyncio.timeout(5):
        await ended.wait()
    await client.wait_closed()
    await server.stop()


async def test_a_slow_reader_is_waited_for():
    sent = 0

    class Session:
        kind = "exec"
        spdy_protocols = ()
        websocket_protocols = (V5,)

        async def over_websocket(self, websocket, protocol):
            nonlocal sent
            session = await ChannelSession.open(websocket, protocol, ALL)
            for _ in range(1000):
                await session.send(Output.STDOUT, bytes(64 * 1024))
                sent += 64 * 1024
            await session.finish(Outcome(exit_code=3))

    server = StreamingServer()
    await server.start()
    url = server.offer(Session()).replace("http", "ws")
    async with websockets.connect(url, subprotocols=[V5], max_queue=4) as client:
        await asyncio.sleep(0.3)
        held = sent
        sizes = [len(message) - 1 async for message in client]
    assert held < 16 * 1024 * 1024
    assert sum(sizes[:-1]) == 1000 * 64 * 1024
    await server.stop()
