"""A session that is served while its client opens the streams."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cri.streaming.carriers import CommandCarrier
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams
from cri.streaming.spdy import commands
from cri.streaming.spdy.commands import SpdyCommandSession
from cri.streaming.spdy.frames import Data, SynStream
from cri.streaming.spdy.headers import HeaderBlock
from cri.streaming.spdy.opening import OpeningSession

V4 = "v4.channel.k8s.io"
STREAMS = Streams(stdin=True, stdout=True, stderr=False, tty=False)
NUMBERS = {"error": 1, "stdin": 3, "stdout": 5}


def opens(client, *names: str) -> None:
    client.send(*(SynStream(NUMBERS[name], HeaderBlock({"streamtype": name})) for name in names))


@pytest.fixture
async def client(connect):
    return await connect()


@pytest.fixture
async def session(client):
    made = OpeningSession(SpdyCommandSession.open(client.connection, V4, STREAMS))
    yield made
    await made.close()


async def test_what_is_said_before_waits_for_the_streams(client, session, data_of):
    sending = asyncio.create_task(session.send(Output.STDOUT, b"early"))
    reading = asyncio.create_task(session.stdin())
    opens(client, "error", "stdin")
    await asyncio.sleep(0.05)
    assert not sending.done()
    opens(client, "stdout")
    client.send(Data(NUMBERS["stdin"], b"input"))
    async with asyncio.timeout(5):
        await sending
        assert await reading == b"input"
        await session.finish(Outcome())
    frames = await client.frames()
    assert data_of(frames, NUMBERS["stdout"]) == b"early"
    assert b"Success" in data_of(frames, NUMBERS["error"])


async def test_a_client_that_never_opens_them_has_gone(client, monkeypatch):
    monkeypatch.setattr(commands, "CREATION_PATIENCE", 0.05)
    session = OpeningSession(SpdyCommandSession.open(client.connection, V4, STREAMS))
    async with asyncio.timeout(5):
        await session.gone()
        with pytest.raises(ClientGoneError):
            await session.send(Output.STDOUT, b"x")
        with pytest.raises(ClientGoneError):
            await session.stdin()
        assert await session.resized() is None
        await session.finish(Outcome())
        await session.close()


async def test_closing_does_not_wait_for_the_client(client):
    session = OpeningSession(SpdyCommandSession.open(client.connection, V4, STREAMS))
    async with asyncio.timeout(1):
        await session.close()
    with contextlib.suppress(asyncio.CancelledError):
        await session.stdin()
        pytest.fail("nobody is there")


@pytest.mark.parametrize("early", [True, False])
async def test_a_carrier_serves_early_only_if_it_is_to(client, early):
    served = asyncio.Event()

    async def serve(session) -> Outcome:
        served.set()
        return Outcome()

    carrier = CommandCarrier("exec", "c", STREAMS, serve, early=early)
    running = asyncio.create_task(carrier.over_spdy(client.connection._wire, V4))
    opens(client, "error")
    await asyncio.sleep(0.1)
    assert served.is_set() is early
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
