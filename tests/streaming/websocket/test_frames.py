"""Any split of the bytes gives the same messages; what no client may send is found out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from cri.streaming.websocket.frames import Control, FrameReader, ProtocolBreachError, frame_header

MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([Opcode.TEXT, Opcode.BINARY]),
        st.lists(st.binary(max_size=300), min_size=1, max_size=4),
        st.one_of(st.none(), st.binary(max_size=125)),
    ),
    max_size=6,
)


def client_bytes(messages):
    """The frames of messages, each with a ping in its midst if it says so."""
    stream = b""
    for opcode, fragments, ping in messages:
        for number, data in enumerate(fragments):
            if number and ping is not None:
                stream += Frame(Opcode.PING, ping).serialize(mask=True)
            fin = number == len(fragments) - 1
            stream += Frame(Opcode.CONT if number else opcode, data, fin).serialize(mask=True)
    return stream


def read(reader, pieces):
    messages, pings, message = [], [], b""
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, Control):
                pings.append(event.data)
                continue
            assert event.first == (not message)
            message += event.data
            if event.last:
                messages.append((event.text, message))
                message = b""
    return messages, pings


@given(MESSAGES, st.lists(st.integers(1, 400)))
def test_any_split_gives_the_same_messages(messages, sizes):
    stream = client_bytes(messages)
    pieces, rest = [], stream
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    expected = [(opcode is Opcode.TEXT, b"".join(fragments)) for opcode, fragments, _ in messages]
    pings = [ping for _, fragments, ping in messages if ping is not None for _ in fragments[1:]]
    for split in ([*pieces, rest], [stream], [stream[at : at + 1] for at in range(len(stream))]):
        assert read(FrameReader(), split) == (expected, pings)


@given(
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PONG]),
    st.sampled_from([0, 1, 125, 126, 65535, 65536, 99999]),
)
def test_headers_are_what_a_client_reads(opcode, size):
    size = min(size, 125) if opcode is Opcode.PONG else size
    client = Protocol(Side.CLIENT, state=OPEN)
    client.receive_data(frame_header(opcode, size) + bytes(size))
    (frame,) = client.events_received()
    assert (frame.opcode, frame.fin, len(frame.data)) == (opcode, True, size)


def test_a_long_frame_is_handed_on_as_it_comes():
    reader = FrameReader()
    stream = Frame(Opcode.BINARY, bytes(1_000_000)).serialize(mask=True)
    for at in range(0, len(stream), 1000):
        assert sum(len(event.data) for event in reader.feed(stream[at : at + 1000])) >= min(
            986, len(stream) - at
        )
        assert len(reader._kept) < 14


def masked(first, length, *, bit=0x80):
    return bytes((first, bit | length)) + bytes(4)


@pytest.mark.parametrize(
    ("stream", "code", "reason"),
    [
        (masked(0x82, 0, bit=0), CloseCode.PROTOCOL_ERROR, "not masked"),
        (masked(0xC2, 0), CloseCode.PROTOCOL_ERROR, "reserved bit"),
        (masked(0xA2, 0), CloseCode.PROTOCOL_ERROR, "reserved bit"),
        (masked(0x92, 0), CloseCode.PROTOCOL_ERROR, "reserved bit"),
        (masked(0x83, 0), CloseCode.PROTOCOL_ERROR, "opcode"),
        (masked(0x8F, 0), CloseCode.PROTOCOL_ERROR, "opcode"),
        (masked(0x80, 0), CloseCode.PROTOCOL_ERROR, "continuation of no message"),
        (masked(0x02, 0) + masked(0x82, 0), CloseCode.PROTOCOL_ERROR, "inside of another"),
        (masked(0x09, 0), CloseCode.PROTOCOL_ERROR, "control frame"),
        (b"\x89\xfe\x00\x7e" + bytes(4), CloseCode.PROTOCOL_ERROR, "control frame"),
        (b"\x82\xff" + b"\xff" * 12, CloseCode.MESSAGE_TOO_BIG, "longer than 1000 bytes"),
        (b"\x82\xff" + bytes(6) + b"\x03\xe9" + bytes(4), CloseCode.MESSAGE_TOO_BIG, "longer than"),
        (
            b"\x02\xfe\x02\x58" + bytes(604) + b"\x00\xfe\x02\x58" + bytes(604),
            CloseCode.MESSAGE_TOO_BIG,
            "longer than",
        ),
    ],
)
def test_breaches(stream, code, reason):
    for pieces in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        with pytest.raises(ProtocolBreachError, match=reason) as breach:
            read(FrameReader(1000), pieces)
        assert breach.value.code == code


def test_what_came_before_a_breach_counts():
    events = FrameReader().feed(client_bytes([(Opcode.BINARY, [b"good"], None)]) + masked(0x83, 0))
    assert next(events).data == b"good"
    with pytest.raises(ProtocolBreachError):
        next(events)


def test_a_flood_of_empty_fragments_says_nothing():
    reader = FrameReader()
    list(reader.feed(masked(0x02, 0)))
    assert not list(reader.feed(masked(0x00, 0) * 10_000))
    (last,) = reader.feed(masked(0x80, 0))
    assert (last.first, last.last, last.data) == (True, True, b"")


def test_fuzz_a_little():
    fuzz = Path(__file__).with_name("fuzz.py")
    root = str(Path(__file__).parents[3])
    subprocess.run(
        [sys.executable, str(fuzz), "--seconds", "2", "--seed", "7"],
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
