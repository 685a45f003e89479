"""Conversations with a client that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy.connection import SpdyConnection
from cri.streaming.spdy.flow import SendWindow
from cri.streaming.spdy.frames import (
    INITIAL_WINDOW_SIZE,
    MAX_WINDOW,
    Data,
    GoAway,
    GoAwayStatus,
    Headers,
    Ping,
    ResetStatus,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)
from cri.streaming.spdy.headers import HeaderBlock

Connect = Callable[..., Awaitable[Any]]
KiB = 1024


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, 5)


async def stuck(task: asyncio.Task[Any]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return not done


async def test_a_stream_from_begin_to_end(connect: Connect) -> None:
    client = await connect()
    stream = await client.open(streamtype="data", port="80\x0081")
    assert (stream.id, dict(stream.headers)) == (1, {"streamtype": "data", "port": "80"})
    assert await client.frames() == [SynReply(1)]
    client.send(Data(1, b"one"), Data(1, b" two"), Data(1, b"", fin=True))
    assert await soon(stream.read()) + await soon(stream.read()) == b"one two"
    assert await soon(stream.read()) == b""
    await stream.write(b"after the client's end")
    await stream.end()
    await stream.end()
    assert await client.frames() == [Data(1, b"after the client's end"), Data(1, b"", fin=True)]
    assert not client.connection._streams
    with pytest.raises(ClientGoneError):
        await stream.write(b"more")


async def test_large_writes_are_cut_and_many_small_reads_joined(connect: Connect, data_of: Any) -> None:
    client = await connect()
    stream = await client.open()
    data = bytes(range(256)) * 1000
    await stream.write(data)
    frames = await client.frames()
    assert max(len(frame.data) for frame in frames if isinstance(frame, Data)) == 64 * KiB
    client.send(*(Data(1, bytes([n])) for n in range(200)))
    await client.frames()
    assert await stream.read() == bytes(range(200))


async def test_refused_and_reset(connect: Connect) -> None:
    client = await connect()
    client.send(SynStream(1), SynStream(3))
    first, second = await soon(client.connection.accept()), await soon(client.connection.accept())
    await first.refuse()
    await second.reply()
    client.send(Data(3, b"unread"))
    reading = asyncio.create_task(second.read())
    assert await soon(reading) == b"unread"
    reading = asyncio.create_task(second.read())
    await client.frames()
    client.send(RstStream(3, ResetStatus.CANCEL))
    with pytest.raises(ClientGoneError):
        await soon(reading)
    with pytest.raises(ClientGoneError):
        await second.write(b"x")
    await second.reset()
    await first.reset()
    assert client.received[2:] == [RstStream(1, ResetStatus.REFUSED_STREAM), SynReply(3)]
    client.send(Data(3, b"was under way"), Data(1, b"too"), Ping(1))
    assert await client.frames() == [Ping(1)], "data for streams that ended is dropped in silence"


async def test_streams_reset_before_they_were_accepted_are_passed_over(connect: Connect) -> None:
    client = await connect()
    client.send(SynStream(1), RstStream(1, ResetStatus.CANCEL), SynStream(3))
    assert (await soon(client.connection.accept())).id == 3


async def test_what_came_before_the_end_of_the_connection_is_read(connect: Connect) -> None:
    client = await connect()
    ended, lost = await client.open(), await client.open()
    client.send(Data(1, b"all", fin=True), Data(3, b"some"))
    client.send_raw(b"")
    await soon(client.connection.closed())
    assert [await ended.read(), await ended.read()] == [b"all", b""]
    assert await lost.read() == b"some"
    with pytest.raises(ClientGoneError):
        await lost.read()
    with pytest.raises(ClientGoneError):
        await ended.end()
    assert await client.connection.accept() is None


async def test_a_heedless_client_is_sent_everything_at_once(connect: Connect, data_of: Any) -> None:
    """As spdystream, which never opens a window."""
    client = await connect(room=64 << 20)
    stream = await client.open()
    await soon(stream.write(bytes(8 << 20)))
    assert len(data_of(await client.frames(), 1)) == 8 << 20


async def test_windows_of_a_client_that_counts_are_waited_for(connect: Connect, data_of: Any) -> None:
    client = await connect()
    client.send(Settings(((INITIAL_WINDOW_SIZE, 1000), (INITIAL_WINDOW_SIZE, 5))))
    stream, other = await client.open(), await client.open()
    writing = asyncio.create_task(stream.write(bytes(5000)))
    assert await stuck(writing)
    assert len(data_of(await client.frames(), 1)) == 1000
    client.send(WindowUpdate(1, 500), WindowUpdate(99, 500))
    assert len(data_of(await client.frames(), 1)) == 500
    client.send(Settings(((INITIAL_WINDOW_SIZE, 100),)), WindowUpdate(1, 950))
    assert len(data_of(await client.frames(), 1)) == 50, "a smaller initial size counts for open streams"
    await soon(other.write(bytes(100)))
    client.send(WindowUpdate(1, 1 << 20))
    await soon(writing)


async def test_a_change_of_all_windows_takes_no_longer_for_many_streams(connect: Connect) -> None:
    """It looked at each of them: a client could make one read of 256 frames take half a second."""
    client = await connect()
    touched = 0

    class Window(SendWindow):
        def grow(self, delta: int, base: int = 0) -> bool:
            nonlocal touched
            touched += 1
            return super().grow(delta, base)

    for _ in range(50):
        (await client.open()).send_window = Window()
    client.send(*(Settings(((INITIAL_WINDOW_SIZE, 1000 + number),)) for number in range(100)), Ping(1))
    assert Ping(1) in await client.frames()
    assert touched == 0
    client.send(WindowUpdate(1, 1))
    await client.frames()
    assert touched == 1


async def test_a_window_that_settings_and_updates_make_too_large(connect: Connect) -> None:
    client = await connect()
    await client.open()
    await client.frames()
    client.send(Settings(((INITIAL_WINDOW_SIZE, 0),)), WindowUpdate(1, MAX_WINDOW))
    assert await client.frames() == []
    client.send(Settings(((INITIAL_WINDOW_SIZE, 1),)), WindowUpdate(1, 1))
    assert await client.frames() == [RstStream(1, ResetStatus.FLOW_CONTROL_ERROR)]


async def test_the_window_of_the_session_is_waited_for(connect: Connect, data_of: Any) -> None:
    client = await connect()
    client.send(Settings(((INITIAL_WINDOW_SIZE, 1 << 20),)), WindowUpdate(0, 1))
    stream = await client.open()
    writing = asyncio.create_task(stream.write(bytes(100 * KiB)))
    assert await stuck(writing)
    assert len(data_of(await client.frames(), 1)) == 64 * KiB + 1
    client.send(WindowUpdate(0, 100 * KiB))
    await soon(writing)


@pytest.mark.parametrize("end", ["reset", "lost"])
async def test_a_writer_without_a_window_notices_the_end(connect: Connect, end: str) -> None:
    client = await connect()
    client.send(Settings(((INITIAL_WINDOW_SIZE, 0),)))
    stream = await client.open()
    writing = asyncio.create_task(stream.write(b"x"))
    assert await stuck(writing)
    if end == "reset":
        client.send(RstStream(1, ResetStatus.CANCEL))
    else:
        client.send_raw(b"")
    with pytest.raises(ClientGoneError):
        await soon(writing)


async def test_windows_are_opened_as_data_is_read(connect: Connect) -> None:
    client = await connect(stream_buffer=64 * KiB, connection_buffer=128 * KiB)
    stream = await client.open()
    await client.frames()
    for _ in range(3):
        client.send(Data(1, bytes(16 * KiB)))
        await soon(stream.read())
        assert await client.frames() == []
        client.send(Data(1, bytes(16 * KiB)))
        await soon(stream.read())
        opened = await client.frames()
        assert WindowUpdate(1, 32 * KiB) in opened
    assert WindowUpdate(0, 64 * KiB) in client.received


async def test_a_client_that_overruns_gets_no_more_windows(connect: Connect) -> None:
    client = await connect(stream_buffer=64 * KiB)
    stream = await client.open()
    await client.frames()
    client.send(Data(1, bytes(100 * KiB)))
    await soon(stream.read())
    client.send(Data(1, bytes(100 * KiB)))
    await soon(stream.read())
    assert await client.frames() == []
    assert client.connection._heed.heedless


async def test_overrunning_is_an_error_of_a_client_that_counts(connect: Connect, goaway_of: Any) -> None:
    client = await connect(stream_buffer=64 * KiB)
    await client.open()
    client.send(WindowUpdate(1, 10), Data(1, bytes(60 * KiB)), Ping(1))
    assert Ping(1) in await client.frames()
    client.send(Data(1, bytes(4 * KiB + 1)))
    await soon(client.connection.closed())
    assert goaway_of(await client.frames()) == [GoAwayStatus.PROTOCOL_ERROR]


@pytest.mark.parametrize("whole", [True, False])
async def test_the_client_is_not_read_while_a_buffer_is_full(connect: Connect, whole: bool) -> None:
    limits = {"connection_buffer": 64 * KiB} if whole else {"stream_buffer": 64 * KiB}
    client = await connect(**limits)
    first, second = await client.open(), await client.open()
    for n in range(100):
        client.send(Data(3 if whole and n % 2 else 1, bytes(16 * KiB)))
    await client.frames()
    assert client.connection._cost <= 64 * KiB + 17 * KiB
    assert client.pipe.incoming.qsize() > 90
    got = 0
    while got < 1600 * KiB:
        for stream in (first, second):
            if stream.cost:
                got += len(await soon(stream.read()))
        await asyncio.sleep(0)
    assert client.connection._cost == 0


async def test_ignored_data_does_not_fill_anything(connect: Connect) -> None:
    client = await connect(stream_buffer=64 * KiB)
    stream = await client.open()
    client.send(Data(1, bytes(100 * KiB)), Ping(1))
    assert Ping(1) not in await client.frames()
    await stream.ignore()
    client.send(*[Data(1, bytes(100 * KiB))] * 20, Ping(3), Data(1, b"", fin=True))
    assert {Ping(1), Ping(3)} <= {frame for frame in await client.frames() if isinstance(frame, Ping)}
    assert await stream.read() == b""
    await stream.end()
    assert not client.connection._streams
    assert client.connection._cost == 0


async def test_a_client_that_does_not_read_is_waited_for(connect: Connect, data_of: Any) -> None:
    client = await connect(room=100 * KiB)
    streams = [await client.open() for _ in range(10)]
    writers = [asyncio.create_task(stream.write(bytes(256 * KiB))) for stream in streams]
    await asyncio.sleep(0.05)
    assert len(client.pipe.sent) < 100 * KiB + 65 * KiB, "one frame too many, not one per writer"
    client.send(Data(1, b"input while output waits"), Ping(1))
    assert await soon(streams[0].read()) == b"input while output waits"
    frames = []
    while not all(writer.done() for writer in writers):
        frames += client.take()
        await asyncio.sleep(0)
    frames += await client.frames()
    assert Ping(1) in frames
    assert all(len(data_of(frames, stream.id)) == 256 * KiB for stream in streams)


async def test_answers_that_nobody_reads_are_bounded(connect: Connect) -> None:
    client = await connect(room=1000, answers=16)
    for n in range(1000):
        client.send(*(Ping(2 * k + 1) for k in range(n * 10, n * 10 + 10)))
    await asyncio.sleep(0.05)
    assert client.pipe.incoming.qsize() > 900
    assert len(client.pipe.sent) < 2000
    answers = [frame for frame in await client.frames() if isinstance(frame, Ping)]
    assert answers == [Ping(2 * k + 1) for k in range(10_000)]


async def test_even_pings_are_answers_and_headers_may_end(connect: Connect) -> None:
    client = await connect()
    stream = await client.open()
    client.send(Ping(2), Headers(1, HeaderBlock({"more": "x"})), Data(1, b"x"), Headers(1, fin=True))
    assert await client.frames() == [SynReply(1)]
    assert [await stream.read(), await stream.read()] == [b"x", b""]


async def test_streams_are_limited(connect: Connect) -> None:
    client = await connect(open_streams=3)
    streams = [await client.open() for _ in range(3)]
    await client.frames()
    client.send(SynStream(7), SynStream(9, unidirectional=True))
    refusals = [RstStream(number, ResetStatus.REFUSED_STREAM) for number in (7, 9)]
    assert await client.frames() == refusals
    await streams[0].reset()
    client.send(SynStream(11))
    assert (await soon(client.connection.accept())).id == 11


async def test_streams_that_nobody_accepts_stop_the_reading(connect: Connect) -> None:
    client = await connect(unaccepted_streams=10)
    for n in range(100):
        client.send(SynStream(2 * n + 1))
    await client.frames()
    assert len(client.connection._unaccepted) == 10
    accepted = [(await soon(client.connection.accept())).id for _ in range(100)]
    assert accepted == list(range(1, 200, 2))


async def test_a_goaway_lets_streams_go_on_but_no_new_ones(connect: Connect) -> None:
    client = await connect()
    stream = await client.open()
    await client.frames()
    client.send(GoAway(0, GoAwayStatus.OK), SynStream(3), Data(1, b"x", fin=True))
    assert await client.frames() == [RstStream(3, ResetStatus.REFUSED_STREAM)]
    assert await soon(stream.read()) == b"x"
    await stream.write(b"still here")


@pytest.mark.parametrize(
    ("frames", "answer"),
    [
        ([Data(99, b"x")], RstStream(99, ResetStatus.INVALID_STREAM)),
        ([Data(2, b"x")], RstStream(2, ResetStatus.INVALID_STREAM)),
        ([Data(1, b"", fin=True), Data(1, b"x")], RstStream(1, ResetStatus.STREAM_ALREADY_CLOSED)),
        ([SynStream(1)], RstStream(1, ResetStatus.PROTOCOL_ERROR)),
        ([SynStream(3, HeaderBlock({"": "x"}))], RstStream(3, ResetStatus.PROTOCOL_ERROR)),
        ([WindowUpdate(1, 0)], RstStream(1, ResetStatus.PROTOCOL_ERROR)),
        ([WindowUpdate(1, MAX_WINDOW)], RstStream(1, ResetStatus.FLOW_CONTROL_ERROR)),
    ],
)
async def test_errors_of_a_stream(connect: Connect, frames: list[Any], answer: RstStream) -> None:
    client = await connect()
    await client.open()
    await client.frames()
    client.send(*frames)
    assert await client.frames() == [answer]
    client.send(Ping(1))
    assert await client.frames() == [Ping(1)]


@pytest.mark.parametrize(
    "frames",
    [
        [SynStream(4)],
        [SynStream(9), SynStream(5)],
        [SynReply(1)],
        [WindowUpdate(0, 0)],
        [WindowUpdate(0, MAX_WINDOW)],
        [Settings(((INITIAL_WINDOW_SIZE, 2**31),))],
        [Data(0, b"x")],
    ],
)
async def test_errors_of_the_connection(connect: Connect, goaway_of: Any, frames: list[Any]) -> None:
    client = await connect()
    stream = await client.open()
    reading = asyncio.create_task(stream.read())
    with capture_logs() as logs:
        client.send(*frames, Ping(1))
        with pytest.raises(ClientGoneError):
            await soon(reading)
        await soon(client.connection.close())
    received = await client.frames()
    assert goaway_of(received) == [GoAwayStatus.PROTOCOL_ERROR]
    assert Ping(1) not in received
    assert client.pipe.closed
    (entry,) = logs
    assert entry["log_level"] == "warning"
    assert entry["reason"]


async def test_closing(connect: Connect, goaway_of: Any) -> None:
    client = await connect()
    stream = await client.open()
    await stream.write(b"last words")
    await asyncio.gather(soon(client.connection.close()), soon(client.connection.close()))
    assert (await client.frames())[1:] == [Data(1, b"last words"), GoAway(1, GoAwayStatus.OK)]
    assert client.pipe.closed
    assert not client.pipe.aborted, "what was sent must arrive"
    assert await client.connection.accept() is None


async def test_closing_gives_up_on_a_client_that_does_not_read(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.streaming.spdy.connection.LINGER", 0.05)
    client = await connect(room=1000)
    stream = await client.open()
    writing = asyncio.create_task(stream.write(bytes(2000)))
    assert await stuck(writing)
    await soon(client.connection.close())
    client.connection.abort()
    with pytest.raises(ClientGoneError):
        await soon(writing)


async def test_a_lost_wire_ends_everything(connect: Connect) -> None:
    client = await connect(room=1000, stream_buffer=10)
    stream = await client.open()
    client.send(Data(1, b"x" * 20), Data(1, b"y"))
    writing = asyncio.create_task(stream.write(bytes(2000)))
    assert await stuck(writing)
    client.pipe.abort()
    with pytest.raises(ClientGoneError):
        await soon(writing)
    await soon(client.connection.closed())


async def test_a_client_that_is_not_read_is_probed(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri.streaming.spdy.connection.PROBE_INTERVAL", 0.02)
    client = await connect(stream_buffer=10)
    await client.open()
    client.send(Data(1, b"x" * 20))
    await client.frames()
    await asyncio.sleep(0.1)
    assert Settings() in client.take()
    client.pipe.aborted = True  # as if the probe had been answered by a TCP reset
    await soon(client.connection.closed())


async def test_cancelling_run_ends_the_connection(connect: Connect) -> None:
    client = await connect()
    connection = SpdyConnection(client.pipe)
    running = asyncio.create_task(connection.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert client.pipe.aborted


async def test_a_flood_leaves_the_event_loop_to_others(connect: Connect) -> None:
    client = await connect()
    client.send(*[WindowUpdate(99, 1)] * 20_000, Ping(1))
    turns = 0
    while Ping(1) not in client.take():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 50
