"""Damaged conversations, as long as you like: `python tests/streaming/spdy/fuzz.py --seconds 60 [--seed N]`.

Each round invents a valid conversation, damages its bytes, cuts them anywhere, and plays them to a connection whose
user accepts, reads and writes at random, over a wire that is sometimes slow. It must end in order, whatever comes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy.codec import Decoder, Encoder
from cri.streaming.spdy.connection import Limits, SpdyConnection, SpdyStream
from cri.streaming.spdy.frames import (
    Data,
    Frame,
    GoAway,
    Headers,
    Ping,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)
from cri.streaming.spdy.headers import HeaderBlock

LIMITS = Limits(
    control_frame=2048,
    header_block=4096,
    open_streams=8,
    unaccepted_streams=3,
    stream_buffer=4096,
    connection_buffer=8192,
    answers=4,
)
READ_SIZE = 8192


class FuzzWire:
    """Plays the client's bytes, then its end; what it is sent must make sense."""

    def __init__(self, chance: random.Random, pieces: list[bytes]) -> None:
        self._chance = chance
        self._pieces = pieces
        self._decoder = Decoder(Limits())
        self._writing = 0
        self.sent: list[Frame] = []
        self.over = False

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self.over or not self._pieces:
            return b""
        return self._pieces.pop(0)

    async def write(self, *parts: bytes) -> None:
        assert not self._writing, "frames of two writers at a time"
        self._writing += 1
        try:
            for part in parts:
                self.sent += self._decoder.feed(part)
            for _ in range(self._chance.choice([0, 0, 1, 5])):
                await asyncio.sleep(0)
            if self._chance.random() < 0.001:
                self.over = True
                raise ConnectionError("lost")
        finally:
            self._writing -= 1

    async def close(self) -> None:
        self.over = True

    def abort(self) -> None:
        self.over = True


def conversation(chance: random.Random) -> list[Frame]:
    """Frames that mostly fit together."""
    frames: list[Frame] = []
    opened = [1]
    for _ in range(chance.randrange(1, 40)):
        stream = chance.choice(opened) if chance.random() < 0.95 else chance.randrange(1, 50)
        data = chance.randbytes(chance.choice([0, 1, 100, 5000]))
        fin = chance.random() < 0.1
        name = chance.choice(["streamtype", "port", "requestid", "", "x" * 300])
        match chance.randrange(14):
            case 0 | 1 | 2:
                opened.append(opened[-1] + 2 * chance.choice([1, 1, 1, 0, 5]))
                frames.append(SynStream(opened[-1], HeaderBlock({name: "v" * chance.randrange(50)}), fin=fin))
            case 3 | 4 | 5 | 6:
                frames.append(Data(stream, data, fin=fin))
            case 7:
                frames.append(RstStream(stream, chance.randrange(12)))
            case 8:
                frames.append(
                    Settings(((chance.randrange(1, 9), chance.choice([0, 1000, 2**31 - 1, 2**32 - 1])),))
                )
            case 9:
                frames += [Ping(chance.randrange(2**32))] * chance.choice([1, 20])
            case 10:
                frames.append(
                    WindowUpdate(chance.choice([0, stream]), chance.choice([0, 1, 10_000, 2**31 - 1]))
                )
            case 11:
                frames.append(Headers(stream, HeaderBlock({name: "more"}), fin=fin))
            case 12 if chance.random() < 0.2:
                frames.append(GoAway(0, 0))
            case 13 if chance.random() < 0.1:
                frames.append(SynReply(stream))
    return frames


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The bytes with a few changed, lost, doubled or made up; sometimes with none."""
    result = bytearray(data)
    for _ in range(chance.choice([0, 0, 1, 1, 3, 10])):
        start = chance.randrange(len(result) + 1)
        end = start + chance.choice([1, 1, 4, 50])
        match chance.randrange(4):
            case 0 if start < len(result):
                result[start] ^= 1 << chance.randrange(8)
            case 1:
                del result[start:end]
            case 2:
                result[start:start] = result[start:end]
            case 3:
                result[start:end] = chance.randbytes(end - start)
    return bytes(result)


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Pieces as reads may return them: none empty, none larger than a read."""
    pieces = []
    while data:
        size = chance.choice([1, 8, 100, READ_SIZE])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


async def use(chance: random.Random, stream: SpdyStream) -> None:
    """What a user does with a stream."""
    with contextlib.suppress(ClientGoneError):
        if chance.random() < 0.1:
            await stream.refuse()
            return
        await stream.reply()
        for _ in range(chance.randrange(10)):
            match chance.randrange(8):
                case 0 | 1 | 2:
                    async with asyncio.timeout(0.001):
                        await stream.read()
                case 3 | 4:
                    async with asyncio.timeout(0.001):
                        await stream.write(bytes(chance.choice([0, 10, 100_000])))
                case 5:
                    await stream.end()
                    return
                case 6 if chance.random() < 0.3:
                    await stream.reset()
                case 7 if chance.random() < 0.3:
                    await stream.ignore()


async def one_round(chance: random.Random) -> None:
    """One conversation. Raises AssertionError, TimeoutError, or whatever else must not come."""
    encoder = Encoder()
    data = damaged(chance, b"".join(map(encoder.encode, conversation(chance))))
    wire = FuzzWire(chance, cut(chance, data))
    connection = SpdyConnection(wire, limits=LIMITS)
    users: list[asyncio.Task[None]] = []

    async def accept() -> None:
        while (stream := await connection.accept()) is not None:
            users.append(asyncio.create_task(use(chance, stream)))

    def check() -> None:
        waiting = sum(stream.cost for stream in connection._streams.values())
        assert connection._cost >= waiting >= 0
        assert connection._cost <= LIMITS.connection_buffer + READ_SIZE + 64
        assert len(connection._streams) <= LIMITS.open_streams
        assert len(connection._unaccepted) <= LIMITS.unaccepted_streams
        assert len(connection._sender._answers) <= LIMITS.answers

    running = asyncio.create_task(connection.run())
    accepting = asyncio.create_task(accept())
    patience = chance.choice([20, 200, 2000])
    while not running.done() and patience:
        await asyncio.sleep(0)
        check()
        patience -= 1
    await (connection.close() if chance.random() < 0.7 else asyncio.sleep(0))
    connection.abort()
    async with asyncio.timeout(5):
        await asyncio.gather(running, accepting)
        for result in await asyncio.gather(*users, return_exceptions=True):
            if result is not None and not isinstance(result, TimeoutError):
                raise result
    assert not connection._streams
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


async def fuzz(seconds: float, seed: int) -> int:
    """Rounds until the time is over; how many. Round `n` of a seed is the same again, as far as the clock allows."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        try:
            await one_round(random.Random(f"{seed}/{rounds}"))
        except BaseException as error:
            error.add_note(f"seed {seed}, round {rounds}")
            raise
        rounds += 1
    return rounds


def refuse_error(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """Whatever a connection logs as an error is a finding."""
    raise AssertionError(event["event"]) from event.get("exc_info")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    structlog.configure([refuse_error], structlog.make_filtering_bound_logger(logging.ERROR))
    print(f"seed {options.seed}", flush=True)
    print(f"{asyncio.run(fuzz(options.seconds, options.seed))} rounds")


if __name__ == "__main__":
    main()
