"""Hostile bytes for the WebSocket's frames and channels: `python fuzz.py --seconds 60 --seed 1`.

Frames are compared with the parser of the `websockets` library, which waits for whole frames: both must find the same
messages, and the same streams to be broken. Channels must end in ClientGoneError or go on, and hold a bounded number of
bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import time

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from cri.streaming.session import ClientGoneError, Outcome, Output, Streams
from cri.streaming.websocket import channels, pipe, ports
from cri.streaming.websocket.connection import WebSocketConnection
from cri.streaming.websocket.frames import Control, FrameReader, ProtocolBreachError

MOST = 4096
DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)


class AnyFrame(Frame):
    """A frame that may be wrong."""

    def check(self) -> None:
        pass


def hostile_bytes(dice: random.Random) -> bytes:
    """Frames of a client, most of them in order, then damaged or not."""
    stream = bytearray()
    for _ in range(dice.randrange(1, 12)):
        opcode = dice.choice([*Opcode, Opcode.BINARY, Opcode.BINARY, Opcode.CONT])
        size = dice.choice([0, 1, 2, 3, 7, 125, 126, 200, 70_000 if dice.random() < 0.05 else 5])
        data = bytes(dice.choice((0, 1, 3, 4, 255, 48, 52, 61, 123)) for _ in range(min(size, 300)))
        data = data.ljust(size, b"x")
        frame = AnyFrame(opcode, data, fin=dice.random() < 0.7)
        stream += frame.serialize(mask=dice.random() < 0.97)
    for _ in range(dice.choice([0, 0, 0, 1, 2, 5])):
        at = dice.randrange(len(stream))
        kind = dice.randrange(4)
        if kind == 0:
            stream[at] = dice.randrange(256)
        elif kind == 1:
            del stream[at : at + dice.randrange(1, 9)]
        elif kind == 2:
            stream[at:at] = dice.randbytes(dice.randrange(1, 9))
        else:
            stream[at:at] = b"\x82\xff" + dice.choice((b"\xff", b"\x00")) * 4 + dice.randbytes(8)
        if not stream:
            return b""
    return bytes(stream)


def split(dice: random.Random, stream: bytes) -> list[bytes]:
    """The stream in pieces of any size."""
    pieces = []
    while stream:
        size = dice.choice([1, 2, 3, 13, 100, len(stream)])
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


def ours(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], bool | None, int]:
    """Messages and control frames, whether the stream is broken (None: a header has to come first), bytes kept at most."""
    reader = FrameReader(MOST)
    events: list[tuple[str, bytes]] = []
    message = b""
    kept = 0
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                if isinstance(event, Control):
                    events.append((event.opcode.name, event.data))
                    if event.opcode is Opcode.CLOSE:
                        return events, False, kept
                    continue
                assert event.first == (not message), (
                    "the first part of a message, and only this, is called so"
                )
                message += event.data
                if event.last:
                    events.append(("TEXT" if event.text else "BINARY", message))
                    message = b""
            kept = max(kept, len(reader._kept))
    except ProtocolBreachError:
        return events, True, kept
    in_header = reader._frame is None and bool(reader._kept)
    return events, None if in_header else False, kept


def theirs(stream: bytes) -> tuple[list[tuple[str, bytes]], bool]:
    """The same by the library."""
    logger = logging.getLogger("fuzz")
    logger.disabled = True
    library = Protocol(Side.SERVER, state=OPEN, max_size=MOST, logger=logger)
    library.receive_data(stream)
    events: list[tuple[str, bytes]] = []
    kind, message = "", b""
    for frame in library.events_received():
        if frame.opcode not in DATA:
            events.append((frame.opcode.name, bytes(frame.data)))
            continue
        if frame.opcode is not Opcode.CONT:
            kind, message = frame.opcode.name, b""
        message += frame.data
        if frame.fin:
            events.append((kind, message))
    return events, library.parser_exc is not None


def compare(dice: random.Random) -> None:
    """One stream through both parsers."""
    stream = hostile_bytes(dice)
    events, broken, kept = ours(split(dice, stream))
    expected, expected_broken = theirs(stream)
    assert kept <= 125 + 14, kept
    if events and events[-1][0] == "CLOSE":
        # The connection looks into it, not the reader; the library does both.
        assert expected[: len(events) - 1] == events[:-1], stream
        return
    assert events == expected, stream
    if expected_broken:  # the library may say so before a header that is too long has come to its end
        assert broken is not False, stream
    # Ours may know that a frame is bad before the library has waited for all of it.


class Wire:
    """A wire that brings what it was given, and then the end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces[::-1]

    async def read(self) -> bytes:
        return self.pieces.pop() if self.pieces else b""

    async def write(self, *parts: bytes) -> None:
        pass

    async def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


async def drive(dice: random.Random) -> None:
    """One stream through a session that reads some of it."""
    websocket = WebSocketConnection(Wire(split(dice, hostile_bytes(dice))))
    protocol = dice.choice(channels.PROTOCOLS)
    streams = Streams(stdin=dice.random() < 0.8, stdout=True, stderr=False, tty=dice.random() < 0.5)
    async with asyncio.timeout(10):
        try:
            if dice.random() < 0.7:
                session = await channels.ChannelSession.open(websocket, protocol, streams)
                while await session.stdin():
                    await session.send(Output.STDOUT, b"x")
                assert session._stdin._size < pipe.LIMIT + 256 * 1024
                while await session.resized() is not None:
                    pass
                await session.finish(Outcome(exit_code=dice.randrange(3)))
            else:
                forward = await ports.PortsSession.open(websocket, dice.choice(ports.PROTOCOLS), [80, 81])
                while (connection := await forward.connection()) is not None:
                    while await connection.read():
                        pass
                    await connection.close()
                await forward.close()
        except ClientGoneError:
            pass
        finally:
            websocket.abort()
    await asyncio.sleep(0)


async def run(seconds: float, seed: int) -> int:
    """Fuzz for some time; how many streams there were."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        dice = random.Random(f"{seed}/{rounds}")
        try:
            compare(dice)
            await drive(dice)
        except BaseException:
            print(f"failed in round {rounds} of seed {seed}")
            raise
        rounds += 1
    return rounds


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(f"{asyncio.run(run(arguments.seconds, arguments.seed))} streams, nothing found")


if __name__ == "__main__":
    main()
