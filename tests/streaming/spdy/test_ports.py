"""Port-forward over SPDY: which streams become connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy import ports
from cri.streaming.spdy.frames import Data, GoAway, ResetStatus, RstStream, SynReply, SynStream
from cri.streaming.spdy.headers import HeaderBlock
from cri.streaming.spdy.ports import SpdyForwardSession


def syn(number: int, kind: str = "", port: str = "", request: str = "") -> SynStream:
    pairs = {"streamtype": kind, "port": port, "requestid": request}
    return SynStream(number, HeaderBlock({name: value for name, value in pairs.items() if value}))


def refused(*numbers: int) -> list[RstStream]:
    return [RstStream(number, ResetStatus.REFUSED_STREAM) for number in numbers]


class Forward:
    """A session and its client."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.session = SpdyForwardSession(client.connection)

    async def ask(self, *frames: Any) -> list[Any]:
        """Send, and what comes back; connections are left for `next`."""
        self.client.send(*frames)
        return await self.client.frames()

    async def next(self) -> Any:
        async with asyncio.timeout(5):
            return await self.session.connection()


@pytest.fixture
async def forward(connect: Callable[..., Awaitable[Any]]) -> AsyncIterator[Forward]:
    made = Forward(await connect())
    yield made
    await made.session.close()
    assert not made.session._halves


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(ports, "PAIR_PATIENCE", seconds)


@pytest.mark.parametrize("request_id", ["7", ""], ids=["numbered", "before 1.2"])
async def test_a_connection_from_begin_to_end(forward: Forward, data_of: Any, request_id: str) -> None:
    forward.client.send(syn(1, "error", "80", request_id), Data(1, b"", fin=True))
    forward.client.send(syn(3, "data", "80", request_id))
    connection = await forward.next()
    assert connection.port == 80
    forward.client.send(Data(3, b"get", fin=True))
    assert [await connection.read(), await connection.read()] == [b"get", b""]
    await connection.write(b"got")
    await connection.finish()
    await connection.close()
    await connection.close()
    frames = await forward.client.frames()
    assert frames[:2] == [SynReply(1), SynReply(3)]
    assert data_of(frames, 3) == b"got"
    assert {frame.stream_id for frame in frames if isinstance(frame, Data) and frame.fin} == {1, 3}


async def test_several_at_a_time_in_any_order(forward: Forward) -> None:
    forward.client.send(
        syn(1, "error", "80", "0"),
        syn(3, "data", "443", "1"),
        syn(5, "error", "443", "1"),
        syn(7, "error", "80", "2"),
        syn(9, "data", "80", "2"),
        syn(11, "data", "80", "0"),
    )
    connections = [await forward.next() for _ in range(3)]
    assert [connection.port for connection in connections] == [443, 80, 80]
    forward.client.send(Data(3, b"1"), Data(9, b"2"), Data(11, b"0"))
    assert [await connection.read() for connection in connections] == [b"1", b"2", b"0"]


async def test_why_a_connection_failed(forward: Forward, data_of: Any) -> None:
    forward.client.send(syn(1, "error", "80", "0"), syn(3, "data", "80", "0"))
    connection = await forward.next()
    await connection.fail("nobody listens")
    frames = await forward.client.frames()
    assert data_of(frames, 1) == b"nobody listens"
    assert Data(3, b"", fin=True) in frames
    forward.client.send(Data(3, bytes(1000)))
    assert await connection.read() == b"", "what still comes is dropped"


@pytest.mark.parametrize(
    "stream",
    [syn(1), syn(1, "stdin", "80", "0"), syn(1, "data", "", "0"), syn(1, "data", "0", "0"), syn(1, "data", "65536"),
     syn(1, "data", "080808"), syn(1, "data", "-1"), syn(1, "data", "http"), syn(1, "error", "²")],
)  # fmt: skip
async def test_streams_that_are_for_no_port(forward: Forward, stream: SynStream) -> None:
    waiting = asyncio.create_task(forward.next())
    assert await forward.ask(stream) == refused(1)
    assert not forward.session._halves
    forward.client.send_raw(b"")
    assert await waiting is None


async def test_streams_that_do_not_fit(forward: Forward) -> None:
    waiting = asyncio.create_task(forward.next())
    frames = await forward.ask(
        syn(1, "data", "80", "0"), syn(3, "data", "80", "0"), syn(5, "error", "81", "0")
    )
    assert frames == [SynReply(1), *refused(3, 5)]
    forward.client.send(syn(7, "error", "80", "0"))
    assert (await waiting).port == 80


async def test_half_a_connection_expires(forward: Forward, patience: Callable[[float], None]) -> None:
    patience(0.05)
    waiting = asyncio.create_task(forward.next())
    with capture_logs() as logs:
        assert await forward.ask(syn(1, "error", "80", "0")) == [SynReply(1)]
        await asyncio.sleep(0.1)
        assert await forward.client.frames() == refused(1)
    assert [entry["request"] for entry in logs] == ["0"]
    patience(30)
    forward.client.send(syn(3, "data", "80", "0"), syn(5, "error", "80", "0"))
    assert (await waiting).port == 80


async def test_a_half_that_the_client_has_reset_is_no_half(forward: Forward) -> None:
    waiting = asyncio.create_task(forward.next())
    await forward.ask(syn(1, "error", "80", "0"))
    await forward.ask(RstStream(1, ResetStatus.CANCEL))
    assert await forward.ask(syn(3, "data", "80", "0")) == [SynReply(3)]
    assert not waiting.done()
    forward.client.send(syn(5, "error", "80", "0"))
    assert (await waiting).port == 80


async def test_streams_that_are_opened_and_reset_make_nothing_grow(
    forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "MOST_HALVES", 20)
    waiting = asyncio.create_task(forward.next())
    await forward.ask(syn(1, "error", "80", "kept"))
    for number in range(3, 203, 2):
        await forward.ask(syn(number, "error", "80", str(number)))
        await forward.ask(RstStream(number, ResetStatus.CANCEL))
    assert len(forward.session._halves) <= 20
    forward.client.send(syn(203, "data", "80", "kept"))
    assert (await waiting).port == 80


@pytest.mark.parametrize("first", [True, False])
async def test_a_stream_that_is_reset_while_its_reply_waits(
    connect: Callable[..., Awaitable[Any]], patience: Callable[[float], None], first: bool
) -> None:
    """It had left half a connection that never expired, and a KeyError for the other half, which ended everything."""
    forward = Forward(await connect(room=100))
    waiting = asyncio.create_task(forward.next())
    if not first:
        await forward.ask(syn(1, "error", "80", "0"))
    forward.client.pipe.sent += bytes(200)  # the client takes nothing just now
    number = 1 if first else 3
    holder = asyncio.create_task(forward.client.connection.send(lambda: (b"",)))
    await asyncio.sleep(0.01)
    forward.client.send(syn(number, "error" if first else "data", "80", "0"))
    await asyncio.sleep(0.01)
    forward.client.send(RstStream(number, ResetStatus.CANCEL))
    await asyncio.sleep(0.01)
    forward.client.pipe.take()
    await holder
    assert await forward.client.frames() == ([] if first else refused(1))
    forward.client.send(syn(5, "error", "80", "0"), syn(7, "data", "80", "0"))
    assert (await waiting).port == 80
    assert not forward.session._halves
    await forward.session.close()


async def test_the_client_goes(forward: Forward) -> None:
    forward.client.send(syn(1, "error", "80", "0"), syn(3, "data", "80", "0"))
    connection = await forward.next()
    forward.client.send_raw(b"")
    with pytest.raises(ClientGoneError):
        await connection.read()
    with pytest.raises(ClientGoneError):
        await connection.write(b"x")
    await connection.fail("nobody hears it")
    assert await forward.next() is None


async def test_closing_leaves_no_expiry(connect: Callable[..., Awaitable[Any]]) -> None:
    forward = Forward(await connect())
    waiting = asyncio.create_task(forward.next())
    await forward.ask(syn(1, "error", "80", "0"))
    (half,) = forward.session._halves.values()
    await forward.session.close()
    assert half.expiry.cancelled()
    assert await waiting is None
    assert any(isinstance(frame, GoAway) for frame in await forward.client.frames())
