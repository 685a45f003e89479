"""Frames and header blocks, byte by byte."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.streaming.spdy.codec import Decoder, Encoder, data_head
from cri.streaming.spdy.errors import SpdyError
from cri.streaming.spdy.frames import (
    MAX_STREAM_ID,
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
from cri.streaming.spdy.headers import DICTIONARY, HeaderBlock, HeaderCompressor, HeaderDecompressor
from cri.streaming.spdy.limits import Limits

LIMITS = Limits()

latin = st.characters(max_codepoint=255)
names = st.text(st.characters(max_codepoint=127, exclude_categories=["Lu"]), min_size=1, max_size=20)
blocks = st.dictionaries(names, st.text(latin, max_size=40), max_size=5).map(HeaderBlock)
streams = st.integers(1, MAX_STREAM_ID)
words = st.integers(0, 2**32 - 1)
frames = st.one_of(
    st.builds(
        SynStream,
        streams,
        blocks,
        st.integers(0, MAX_STREAM_ID),
        st.integers(0, 7),
        fin=st.booleans(),
        unidirectional=st.booleans(),
    ),
    st.builds(SynReply, streams, blocks, fin=st.booleans()),
    st.builds(Headers, streams, blocks, fin=st.booleans()),
    st.builds(RstStream, streams, words),
    st.lists(st.tuples(st.integers(0, 2**24 - 1), words), max_size=4).map(tuple).map(Settings),
    st.builds(Ping, words),
    st.builds(GoAway, st.integers(0, MAX_STREAM_ID), words),
    st.builds(WindowUpdate, st.integers(0, MAX_STREAM_ID), st.integers(0, MAX_STREAM_ID)),
    st.builds(Data, streams, st.binary(max_size=300), fin=st.booleans()),
)


def decode(pieces: list[bytes], limits: Limits = LIMITS) -> tuple[list[Frame], str]:
    """Frames, with pieces of data joined up to a FIN; and the error at the end, if there is one."""
    decoder, found = Decoder(limits), []
    try:
        for piece in pieces:
            found.extend(decoder.feed(piece))
    except SpdyError as error:
        return joined(found), str(error)
    return joined(found), ""


def joined(frames: list[Frame]) -> list[Frame]:
    result: list[Frame] = []
    for frame in frames:
        last = result[-1] if result else None
        if (
            isinstance(frame, Data)
            and isinstance(last, Data)
            and frame.stream_id == last.stream_id
            and not last.fin
        ):
            result[-1] = Data(frame.stream_id, last.data + frame.data, frame.fin)
        else:
            result.append(frame)
    return result


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(frames, max_size=12), st.lists(st.integers(0, 5000), max_size=20))
def test_frames_survive_any_split(sent: list[Frame], cuts: list[int]) -> None:
    encoder = Encoder()
    data = b"".join(map(encoder.encode, sent))
    assert decode(split(data, cuts)) == (joined(sent), "")
    assert decode([data[i : i + 1] for i in range(len(data))]) == (joined(sent), "")


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=20))
def test_garbage_means_the_same_in_any_split(data: bytes, cuts: list[int]) -> None:
    assert decode(split(data, cuts)) == decode([data])


@given(
    st.lists(frames, min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 3000)),
)
@settings(max_examples=200)
def test_damaged_frames_mean_the_same_in_any_split(
    sent: list[Frame], chance: random.Random, cuts: list[int]
) -> None:
    encoder = Encoder()
    data = bytearray(b"".join(map(encoder.encode, sent)))
    for _ in range(3):
        data[chance.randrange(len(data))] = chance.randrange(256)
    assert decode(split(bytes(data), cuts)) == decode([bytes(data)])


def test_data_is_passed_on_before_its_frame_is_complete() -> None:
    decoder = Decoder(LIMITS)
    assert list(decoder.feed(data_head(1, 2**24 - 1, fin=True))) == []
    chunk = bytes(256 * 1024)
    for _ in range(63):
        (piece,) = decoder.feed(chunk)
        assert piece == Data(1, chunk)
        assert piece.data is chunk, "whole chunks need no copy"
    assert list(decoder.feed(chunk)) == [Data(1, chunk[1:], fin=True)]


def test_unknown_control_frames_are_skipped_without_being_kept() -> None:
    decoder = Decoder(LIMITS)
    assert list(decoder.feed(struct.pack(">HHI", 0x8003, 10, 2**24 - 1))) == []
    for _ in range(15):
        assert list(decoder.feed(bytes(2**20))) == []
        assert not decoder._gathered
    assert list(decoder.feed(bytes(2**20 - 1) + Encoder().encode(Ping(5)))) == [Ping(5)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack(">HHI", 0x8002, 1, 10), "version 2"),
        (struct.pack(">HHI", 0x8003, 1, LIMITS.control_frame + 1), "SYN_STREAM frame of"),
        (struct.pack(">HHI", 0x8003, 1, 9), "SYN_STREAM frame of"),
        (struct.pack(">HHI", 0x8003, 6, 5), "PING frame of"),
        (struct.pack(">HHI", 0x8003, 9, 12), "WINDOW_UPDATE frame of"),
        (struct.pack(">HHIII", 0x8003, 3, 8, 0, 1), "stream 0"),
        (struct.pack(">HHII", 0x8003, 4, 4, 2**30), "settings"),
        (data_head(0, 5), "stream 0"),
        (struct.pack(">HHII", 0x8003, 2, 10, 1) + b"no zip", "decompressed"),
    ],
)
def test_what_breaks_the_format_is_refused(data: bytes, reason: str) -> None:
    found, error = decode([data])
    assert found == []
    assert reason in error


def test_dictionary() -> None:
    """The Adler-32 that every zlib stream of SPDY/3 starts with."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)
    assert HeaderCompressor().compress(HeaderBlock())[2:6] == bytes.fromhex("e3c6a7c2")


def test_many_blocks_share_one_context() -> None:
    compressor = HeaderCompressor()
    decompressor = HeaderDecompressor(LIMITS.header_block, LIMITS.header_count)
    sizes = []
    for i in range(2000):
        block = HeaderBlock({"streamtype": "data", "port": "8080", "requestid": str(i)})
        data = compressor.compress(block)
        sizes.append(len(data))
        assert decompressor.decompress(data) == block
    assert max(sizes[1:]) < sizes[0]


def raw_block(*texts: bytes, count: int | None = None) -> bytes:
    packed = b"".join(struct.pack(">I", len(text)) + text for text in texts)
    return struct.pack(">I", len(texts) // 2 if count is None else count) + packed


def zipped(plain: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    compressor = zlib.compressobj(zdict=DICTIONARY)
    return compressor.compress(plain) + compressor.flush(flush)


def unzipped(data: bytes) -> HeaderBlock:
    return HeaderDecompressor(LIMITS.header_block, LIMITS.header_count).decompress(data)


def test_names_are_lowered_and_values_listed() -> None:
    block = unzipped(zipped(raw_block(b"StreamType", b"data", b"p\xc3ort", b"80\x0081")))
    assert block == HeaderBlock({"streamtype": "data", "p\xc3ort": "80\x0081"})
    assert block.first_values() == {"streamtype": "data", "p\xc3ort": "80"}


@pytest.mark.parametrize("texts", [(b"", b"x"), (b"a", b"1", b"A", b"2"), (b"a", b"1", b"a", b"1")])
def test_empty_and_repeated_names_are_the_streams_fault(texts: tuple[bytes, ...]) -> None:
    assert unzipped(zipped(raw_block(*texts))).malformed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (zipped(raw_block(b"a", b"x" * LIMITS.header_block)), "larger"),
        (zipped(bytes(2**30 // 64)), "larger"),
        (zipped(raw_block(count=2**32 - 1)), "names"),
        (zipped(raw_block(b"a", count=1)), "cut off"),
        (zipped(raw_block(b"a", b"b") + b"x"), "as long"),
        (zipped(raw_block(b"a", b"b")[:-1] + b""), "as long"),
        (zipped(b""), "cut off"),
        (zipped(raw_block(), zlib.Z_FINISH), "ended"),
        (zlib.compress(raw_block()), "cut off|decompressed|ended"),
    ],
)
def test_blocks_that_cannot_be_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(SpdyError, match=reason):
        unzipped(data)


def test_a_zip_bomb_is_not_unpacked() -> None:
    bomb = zipped(bytes(8 << 20))
    assert len(bomb) < LIMITS.control_frame
    tracemalloc.start()
    try:
        with pytest.raises(SpdyError, match="larger"):
            unzipped(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_decoding_is_fast() -> None:
    """A bound far below the truth (several GB/s), so that it fails only if copies have crept in."""
    frame = data_head(1, 256 * 1024) + bytes(256 * 1024)
    chunk, decoder, size = frame * 16, Decoder(LIMITS), 0
    start = time.process_time()
    for _ in range(50):
        size += sum(len(piece.data) for piece in decoder.feed(chunk) if isinstance(piece, Data))
    assert size / (time.process_time() - start) > 500e6
