"""Exec and attach over SPDY, as clients of every version ask for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from cri.sandbox.spec import TerminalSize
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams
from cri.streaming.spdy import commands
from cri.streaming.spdy.commands import PROTOCOLS, SpdyCommandSession
from cri.streaming.spdy.frames import Data, GoAway, ResetStatus, RstStream, SynReply, SynStream
from cri.streaming.spdy.headers import HeaderBlock

V2, V3, V4 = "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"
ALL = Streams(stdin=True, stdout=True, stderr=True, tty=False)
TERMINAL = Streams(stdin=True, stdout=True, stderr=False, tty=True)

Connect = Callable[..., Awaitable[Any]]


class Opened:
    """A session, and its client with the numbers of its streams."""

    def __init__(self, session: SpdyCommandSession, client: Any, numbers: dict[str, int]) -> None:
        self.session = session
        self.client = client
        self.numbers = numbers

    def say(self, name: str, data: bytes, *, fin: bool = False) -> None:
        self.client.send(Data(self.numbers[name], data, fin=fin))

    async def heard(self) -> dict[str, tuple[bytes, bool]]:
        """What the client has got on each stream, and whether it has ended."""
        frames = await self.client.frames()
        found = {}
        for name, number in self.numbers.items():
            data = [frame for frame in frames if isinstance(frame, Data) and frame.stream_id == number]
            found[name] = (b"".join(frame.data for frame in data), any(frame.fin for frame in data))
        return found


def syn(number: int, name: str) -> SynStream:
    return SynStream(number, HeaderBlock({"streamtype": name}))


@pytest.fixture
async def begin(connect: Connect) -> AsyncIterator[Callable[..., Awaitable[Opened]]]:
    """Sessions whose clients open the streams in the order given."""
    sessions = []

    async def start(protocol: str, streams: Streams, *names: str, room: int = 1 << 20) -> Opened:
        client = await connect(room=room)
        numbers = {name: 2 * index + 1 for index, name in enumerate(names)}
        client.send(*(syn(number, name) for name, number in numbers.items()))
        async with asyncio.timeout(5):
            session = await SpdyCommandSession.open(client.connection, protocol, streams)
        sessions.append(session)
        assert await client.frames() == [SynReply(number) for number in numbers.values()]
        return Opened(session, client, numbers)

    yield start
    for session in sessions:
        await session.close()


def names_of(protocol: str, streams: Streams) -> list[str]:
    """What a client of this version opens, in the order of client-go."""
    wanted = ["error", *(name for name in ("stdin", "stdout", "stderr") if getattr(streams, name))]
    return [*wanted, "resize"] if streams.tty and protocol in (V3, V4) else wanted


def test_the_names_of_kubernetes() -> None:
    """pkg/util/remotecommand/constants.go: v1 is older than numbers."""
    assert PROTOCOLS == (V4, V3, V2, "channel.k8s.io", "")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("streams", [ALL, TERMINAL, Streams(False, True, False, False)])
@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(), ""),
        (Outcome(exit_code=3), "command terminated with non-zero exit code: 3"),
        (Outcome(error="no such file"), "no such file"),
    ],
)
async def test_a_command_by_every_version(
    begin: Any, protocol: str, streams: Streams, outcome: Outcome, text: str
) -> None:
    opened = await begin(protocol, streams, *names_of(protocol, streams))
    if streams.stdin:
        opened.say("stdin", b"typed", fin=True)
        assert [await opened.session.stdin(), await opened.session.stdin()] == [b"typed", b""]
    else:
        assert await opened.session.stdin() == b""
    await opened.session.send(Output.STDOUT, b"out")
    await opened.session.send(Output.STDERR, b"err")
    async with asyncio.timeout(5):
        await opened.session.finish(outcome)
    heard = await opened.heard()
    assert heard["stdout"] == (b"out", True)
    assert heard.get("stderr") == ((b"err", True) if streams.stderr else None)
    message, ended = heard["error"]
    assert ended
    if protocol != V4:
        assert message.decode() == text
    else:
        status = json.loads(message)
        assert status["status"] == ("Failure" if text else "Success")
        assert text in status.get("message", "")
    assert any(isinstance(frame, GoAway) for frame in opened.client.received)
    assert opened.client.pipe.closed


async def test_streams_in_any_order_and_no_others(connect: Connect) -> None:
    client = await connect()
    names = ["resize", "stdout", "stdout", "stderr", "", "stdin", "error"]
    client.send(*(syn(2 * index + 1, name) for index, name in enumerate(names)))
    async with asyncio.timeout(5):
        session = await SpdyCommandSession.open(client.connection, V4, TERMINAL)
    client.send(syn(15, "resize"), syn(17, "stdin"))
    refused = [RstStream(number, ResetStatus.REFUSED_STREAM) for number in (5, 7, 9, 15, 17)]
    replied = [SynReply(number) for number in (1, 3, 11, 13)]
    frames = await client.frames()
    assert [frame for frame in frames if isinstance(frame, RstStream)] == refused
    assert [frame for frame in frames if isinstance(frame, SynReply)] == replied
    await session.close()


@pytest.mark.parametrize("protocol", [V2, "channel.k8s.io", ""])
async def test_no_sizes_before_v3(begin: Any, protocol: str) -> None:
    opened = await begin(protocol, TERMINAL, "error", "stdin", "stdout")
    async with asyncio.timeout(1):
        assert await opened.session.resized() is None


async def test_a_client_that_does_not_open_everything(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "CREATION_PATIENCE", 0.1)
    client = await connect()
    client.send(syn(1, "error"), syn(3, "stdout"))
    with capture_logs() as logs, pytest.raises(ClientGoneError) as gone:
        await SpdyCommandSession.open(client.connection, V4, ALL)
    assert [entry["missing"] for entry in logs] == [["stderr", "stdin"]]
    assert str(gone.value) == "", "the log has it already"


async def test_a_client_that_goes_before_it_has_opened_everything(connect: Connect) -> None:
    client = await connect()
    client.send(syn(1, "error"))
    client.send_raw(b"")
    with pytest.raises(ClientGoneError):
        await SpdyCommandSession.open(client.connection, V4, ALL)


async def size(opened: Opened) -> TerminalSize | None:
    async with asyncio.timeout(5):
        return await opened.session.resized()


async def test_sizes(begin: Any) -> None:
    opened = await begin(V4, TERMINAL, "error", "stdin", "stdout", "resize")
    for byte in b'{"Width": 80, "Height": 24}\n':
        opened.say("resize", bytes((byte,)))
    assert await size(opened) == TerminalSize(80, 24)
    opened.say("resize", b"".join(b'{"Width":%d,"Height":1}' % width for width in range(1, 1000)))
    assert await size(opened) == TerminalSize(999, 1), "only the newest matters"
    asking = asyncio.create_task(size(opened))
    opened.say("resize", b'{"Width":7,"Height":7}', fin=True)
    assert await asking == TerminalSize(7, 7)
    assert await size(opened) is None


@pytest.mark.parametrize("protocol", [V3, V4])
@pytest.mark.parametrize(
    "nonsense",
    [b"1 " * 120_000, b"[" * 100_000, b'{"a":' + b"[" * 1000, b"{}" * 120_000, b"}" * 120_000, b"{" * 120_000,
     b'{"Width":-1,"Height":2}', b'{"Width":"1","Height":1}', b"\xff\xfe", b'{"a":' * 30_000 + b"}" * 30_000],
    ids=lambda nonsense: nonsense[:10],
)  # fmt: skip
async def test_nonsense_instead_of_sizes_holds_up_nobody(begin: Any, protocol: str, nonsense: bytes) -> None:
    opened = await begin(protocol, TERMINAL, "error", "stdin", "stdout", "resize")
    for at in range(0, len(nonsense), 16 * 1024):
        opened.say("resize", nonsense[at : at + 16 * 1024])
    worst, last = 0.0, time.perf_counter()
    for _ in range(500):
        await asyncio.sleep(0)
        last, before = time.perf_counter(), last
        worst = max(worst, last - before)
    assert worst < 0.3, "it took over a second"
    opened.say("resize", b'{"Width":80,"Height":24}')
    assert await size(opened) == TerminalSize(80, 24)


async def test_a_client_that_goes(begin: Any) -> None:
    opened = await begin(V4, TERMINAL, *names_of(V4, TERMINAL))
    opened.say("stdin", b"typed")
    opened.client.send_raw(b"")
    async with asyncio.timeout(5):
        await opened.session.gone()
        assert await opened.session.stdin() == b"typed"
        with pytest.raises(ClientGoneError):
            await opened.session.stdin()
        with pytest.raises(ClientGoneError):
            await opened.session.send(Output.STDOUT, b"x")
        assert await opened.session.resized() is None
        await opened.session.finish(Outcome())


async def test_an_output_that_the_client_has_reset_does_not_cost_the_outcome(begin: Any) -> None:
    opened = await begin(V4, ALL, *names_of(V4, ALL))
    opened.client.send(RstStream(opened.numbers["stdout"], ResetStatus.CANCEL))
    await opened.client.frames()
    with pytest.raises(ClientGoneError):
        await opened.session.send(Output.STDOUT, b"x")
    await opened.session.send(Output.STDERR, b"err")
    await opened.session.finish(Outcome(exit_code=1))
    heard = await opened.heard()
    assert heard["stderr"] == (b"err", True)
    assert b"ExitCode" in heard["error"][0]


async def test_output_waits_for_the_client(begin: Any) -> None:
    opened = await begin(V4, ALL, *names_of(V4, ALL), room=1000)
    sending = asyncio.create_task(opened.session.send(Output.STDOUT, bytes(5000)))
    await asyncio.sleep(0.02)
    assert not sending.done()
    assert len((await opened.heard())["stdout"][0]) == 5000
    await sending
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
