"""Who owes an answer and says nothing is noticed, in bounded time; who says anything at all is not."""

from __future__ import annotations

import asyncio

import pytest

from cri.sandbox.warden import silence
from cri.sandbox.warden.silence import Silence


class Peer:
    def __init__(self) -> None:
        self.owes = True
        self.pings = 0
        self.fallen = asyncio.Event()
        self.answers_pings = False
        self.silence = Silence(lambda: self.owes, self.ping, self.fallen.set)

    def ping(self) -> None:
        self.pings += 1
        if self.answers_pings:
            asyncio.get_running_loop().call_soon(self.silence.heard)


@pytest.fixture
async def peer(monkeypatch) -> Peer:
    monkeypatch.setattr(silence, "PATIENCE", 0.1)
    return Peer()


async def test_who_says_nothing_is_pinged_and_then_given_up(peer) -> None:
    peer.silence.listen()
    async with asyncio.timeout(1):
        await peer.fallen.wait()
    assert peer.pings == 1
    assert peer.silence.fallen


async def test_a_pong_is_enough_however_long_the_answer_takes(peer) -> None:
    peer.answers_pings = True
    peer.silence.listen()
    await asyncio.sleep(0.5)
    assert peer.pings > 1
    assert not peer.fallen.is_set()


async def test_who_owes_nothing_may_be_silent(peer) -> None:
    peer.silence.listen()
    peer.owes = False
    await asyncio.sleep(0.3)
    assert peer.pings == 0
    assert not peer.fallen.is_set()
    peer.owes = True
    peer.silence.listen()
    async with asyncio.timeout(1):
        await peer.fallen.wait()


async def test_it_may_speak_again(peer) -> None:
    peer.silence.listen()
    async with asyncio.timeout(1):
        await peer.fallen.wait()
    peer.silence.heard()
    assert not peer.silence.fallen
    peer.fallen.clear()
    peer.silence.listen()
    async with asyncio.timeout(1):
        await peer.fallen.wait()
    assert peer.pings == 2


async def test_it_can_be_stopped(peer) -> None:
    peer.silence.listen()
    peer.silence.stop()
    await asyncio.sleep(0.3)
    assert not peer.fallen.is_set()
