"""Bytes through a WebSocket, whatever its messages are."""

import pytest

from cri.streaming.websocket.tunnel import Tunnel


async def test_bytes_in_both_directions(peer, websocket):
    tunnel = Tunnel(websocket)
    for data in (b"ab", b"", b"c"):
        peer.say(data)
    assert [await tunnel.read(), await tunnel.read()] == [b"ab", b"c"]
    await tunnel.write(b"header", b"body")
    assert peer.messages() == [b"headerbody"]


async def test_the_end(peer, websocket):
    tunnel = Tunnel(websocket)
    peer.say(b"last")
    peer.protocol.send_close(1000)
    peer.flush()
    assert [await tunnel.read(), await tunnel.read(), await tunnel.read()] == [b"last", b"", b""]
    with pytest.raises(ConnectionError):
        await tunnel.write(b"x")
    await tunnel.close()
    assert peer.wire.closed


async def test_close_says_goodbye(peer, websocket):
    tunnel = Tunnel(websocket)
    await tunnel.write(b"last")
    await tunnel.close()
    assert peer.messages() == [b"last"]
    assert peer.protocol.close_rcvd.code == 1000


async def test_text_is_no_spdy(peer, websocket):
    tunnel = Tunnel(websocket)
    peer.say(b"text", text=True)
    assert await tunnel.read() == b""
    peer.got()
    assert peer.protocol.close_rcvd.code == 1003
