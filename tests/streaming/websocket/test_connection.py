"""Messages, pings and goodbyes, with clients that read slowly, lie, or leave."""

import asyncio

import pytest
from structlog.testing import capture_logs
from websockets.frames import CloseCode, Opcode

from cri.streaming.session import ClientGoneError
from cri.streaming.websocket import connection as connection_module
from cri.streaming.websocket.connection import WebSocketConnection


async def test_messages_in_both_directions(peer, websocket, message):
    peer.say(b"hello", step=1)
    assert await message(websocket) == b"hello"
    await websocket.send(b"a", b"bc")
    await websocket.send(b"x" * 70_000, text=True)
    assert peer.messages() == [b"abc", b"x" * 70_000]
    assert [frame.opcode for frame in peer.frames] == [Opcode.BINARY, Opcode.TEXT]


async def test_a_ping_is_answered_by_its_own_bytes(peer, websocket):
    receiving = asyncio.create_task(websocket.receive())
    peer.protocol.send_ping(b"are you there?")
    peer.flush()
    await peer.until(peer.got)
    assert (peer.frames[0].opcode, bytes(peer.frames[0].data)) == (Opcode.PONG, b"are you there?")
    receiving.cancel()


async def test_who_pings_without_reading_makes_nothing_grow(peer, websocket, message):
    peer.wire.room.clear()
    for number in range(20_000):
        peer.protocol.send_ping(b"%d" % number)
    peer.protocol.send_binary(b"still heard")
    peer.flush()
    assert await message(websocket) == b"still heard"
    assert len(peer.wire.written) < 200
    peer.wire.room.set()
    await peer.until(lambda: any(bytes(frame.data) == b"19999" for frame in peer.got()))


async def test_many_small_frames_leave_others_their_turn(peer, websocket, message):
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for _ in range(5000):
        peer.protocol.send_pong(b"")
    peer.protocol.send_binary(b"end")
    peer.flush()
    await message(websocket)
    assert turns > 5000 / connection_module.TURN / 2
    counting.cancel()


async def test_the_client_closes(peer, websocket, message):
    peer.say(b"last")
    peer.protocol.send_close(1000, "bye")
    peer.flush()
    assert await message(websocket) == b"last"
    for _ in range(2):
        with pytest.raises(ClientGoneError):
            await websocket.receive()
    async with asyncio.timeout(1):
        await websocket.gone()
    peer.got()
    assert (peer.protocol.close_rcvd.code, peer.protocol.close_rcvd.reason) == (1000, "bye")
    with pytest.raises(ClientGoneError):
        await websocket.send(b"x")
    await websocket.close()
    assert peer.wire.closed


async def test_the_server_closes(peer, websocket):
    await websocket.send(b"last")
    await websocket.close(CloseCode.GOING_AWAY, "ä" * 200)
    await websocket.close()
    assert peer.messages() == [b"last"]
    assert peer.protocol.close_rcvd.code == 1001
    assert peer.protocol.close_rcvd.reason == "ä" * 61
    assert peer.wire.closed


@pytest.mark.parametrize("payload", [b"\x03", b"\x00\x01", b"\x03\xe8\xff\xfe"])
async def test_a_close_frame_that_makes_no_sense(peer, websocket, payload):
    peer.push(bytes((0x88, 0x80 | len(payload))) + bytes(4) + payload)
    with pytest.raises(ClientGoneError):
        await websocket.receive()
    peer.got()
    assert peer.protocol.close_rcvd.code == CloseCode.PROTOCOL_ERROR


async def test_a_breach_is_logged_and_closes(peer, websocket, message):
    peer.say(b"good")
    peer.push(b"\x82\x01x")
    peer.say(b"never read")
    assert await message(websocket) == b"good"
    with capture_logs() as logs, pytest.raises(ClientGoneError, match="not masked"):
        await websocket.receive()
    assert [entry["reason"] for entry in logs] == ["a frame of the client is not masked"]
    with pytest.raises(ClientGoneError):
        await websocket.receive()
    peer.got()
    assert peer.protocol.close_rcvd.code == CloseCode.PROTOCOL_ERROR


async def test_the_client_vanishes(peer, websocket):
    peer.leave()
    with pytest.raises(ClientGoneError):
        await websocket.receive()
    with pytest.raises(ClientGoneError):
        await websocket.send(b"x")
    async with asyncio.timeout(1):
        await websocket.gone()


async def test_sending_waits_for_room(peer, websocket):
    peer.wire.room.clear()
    sending = asyncio.create_task(websocket.send(b"x"))
    await asyncio.sleep(0.02)
    assert not sending.done()
    peer.wire.room.set()
    await sending


async def test_many_writers_take_turns(peer, websocket):
    """Each had put its message into the wire's buffer before it waited, so that one stuck client held them all."""
    peer.wire.room.clear()
    sending = [asyncio.create_task(websocket.send(b"%3d" % number * 1000)) for number in range(100)]
    await asyncio.sleep(0.02)
    assert len(peer.wire.written) < 2 * 3000
    peer.wire.room.set()
    await asyncio.gather(*sending)
    assert peer.messages() == [b"%3d" % number * 1000 for number in range(100)]


async def test_a_ping_is_answered_while_messages_wait(peer, websocket):
    receiving = asyncio.create_task(websocket.receive())
    peer.wire.room.clear()
    sending = [asyncio.create_task(websocket.send(b"x")) for _ in range(3)]
    await asyncio.sleep(0.01)
    peer.protocol.send_ping(b"?")
    peer.flush()
    await peer.until(lambda: any(frame.opcode is Opcode.PONG for frame in peer.got()))
    for task in (receiving, *sending):
        task.cancel()


async def test_no_message_follows_the_close_frame(peer, websocket):
    peer.wire.room.clear()
    sending = [asyncio.create_task(websocket.send(b"x")) for _ in range(3)]
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(websocket.close())
    await asyncio.sleep(0.01)
    peer.wire.room.set()
    await closing
    assert [type(result) for result in await asyncio.gather(*sending, return_exceptions=True)] == [
        type(None),
        ClientGoneError,
        ClientGoneError,
    ]
    assert peer.messages() == [b"x"]
    assert peer.protocol.close_rcvd.code == 1000


async def test_a_session_that_is_cancelled_is_going_away(peer, websocket):
    async def session():
        try:
            await asyncio.Event().wait()
        finally:
            await websocket.close()

    running = asyncio.create_task(session())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    peer.got()
    assert peer.protocol.close_rcvd.code == 1001


async def test_a_client_that_left_is_found_out_while_nobody_reads(peer):
    websocket = WebSocketConnection(peer.wire, heartbeat=0.02)
    await peer.until(lambda: any(frame.opcode is Opcode.PING for frame in peer.got()))
    peer.wire.gone = True
    async with asyncio.timeout(1):
        await websocket.gone()
    websocket.abort()
    await asyncio.sleep(0)
