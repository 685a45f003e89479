"""The CRI log codec, and its writer."""

import itertools
import os
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.sandbox.warden.logs import MAX_TEXT, Framer, LogFile, timestamp

RECORD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) ([^\n]*)\n")

lines = st.lists(
    st.binary(max_size=20) | st.integers(MAX_TEXT - 2, 3 * MAX_TEXT).map(lambda size: b"x" * size), max_size=6
)


def parse(records: bytes) -> list[tuple[bytes, bytes]]:
    found = list(RECORD.finditer(records))
    assert b"".join(match[0] for match in found) == records
    return [(match[2], match[3]) for match in found]


def reassemble(records: bytes) -> bytes:
    return b"".join(text + (b"\n" if tag == b"F" else b"") for tag, text in parse(records))


@given(st.lists(lines.map(b"\n".join) | st.binary(max_size=100), max_size=8))
def test_nothing_is_lost_and_no_record_is_too_long(chunks):
    framer = Framer("stdout")
    records = b"".join(framer.feed(chunk, 10**18 + n) for n, chunk in enumerate(chunks)) + framer.flush(0)
    assert reassemble(records) == b"".join(chunks)
    assert all(len(text) <= MAX_TEXT for _, text in parse(records))
    assert framer.flush(0) == b""


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_where_the_reads_end_does_not_matter(data, cuts):
    whole, pieces = Framer("stderr"), Framer("stderr")
    expected = whole.feed(data, 0) + whole.flush(0)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    got = b"".join(pieces.feed(data[a:b], 0) for a, b in itertools.pairwise(bounds)) + pieces.flush(0)
    assert got == expected


def naive(chunks):
    """The records of chunks, and what is left: a byte at a time would say the same."""
    records, rest = b"", b""
    for data, now in chunks:
        *ended, last = data.split(b"\n")
        for text, ends in [*((line, True) for line in ended), (last, False)]:
            rest += text
            while len(rest) > MAX_TEXT:
                records += timestamp(now) + b" stdout P " + rest[:MAX_TEXT] + b"\n"
                rest = rest[MAX_TEXT:]
            if ends:
                records += timestamp(now) + b" stdout F " + rest + b"\n"
                rest = b""
    return records, rest


near_the_limit = st.builds(
    lambda parts, more: b"q" * (parts * MAX_TEXT + more), st.integers(1, 4), st.integers(-3, 3)
)


@settings(deadline=None)
@given(st.lists(st.lists(st.binary(max_size=30) | near_the_limit, max_size=6).map(b"\n".join), max_size=6))
def test_a_line_is_split_where_it_must_be_and_nowhere_else(texts):
    framer = Framer("stdout")
    chunks = [(text, 10**18 + 7 * number) for number, text in enumerate(texts) if text]
    records, rest = naive(chunks)
    assert b"".join(framer.feed(data, now) for data, now in chunks) == records
    assert framer.flush(5) == (timestamp(5) + b" stdout P " + rest + b"\n" if rest else b"")


def test_examples():
    framer = Framer("stdout")
    assert (
        framer.feed(b"one\n\ntw", 0)
        == b"1970-01-01T00:00:00.000000000Z stdout F one\n1970-01-01T00:00:00.000000000Z stdout F \n"
    )
    assert framer.feed(b"o\n", 1) == b"1970-01-01T00:00:00.000000001Z stdout F two\n"
    assert framer.feed(b"prompt> ", 2) == b""
    assert framer.flush(3) == b"1970-01-01T00:00:00.000000003Z stdout P prompt> \n"


def test_long_lines_are_split():
    framer = Framer("stdout")
    records = framer.feed(b"a" * MAX_TEXT * 2 + b"b\nc", 0) + framer.flush(0)
    assert parse(records) == [
        (b"P", b"a" * MAX_TEXT),
        (b"P", b"a" * MAX_TEXT),
        (b"F", b"b"),
        (b"P", b"c"),
    ]
    # A line of exactly the limit is one record, however it arrives.
    assert [tag for tag, _ in parse(framer.feed(b"a" * MAX_TEXT, 0) + framer.feed(b"\n", 0))] == [b"F"]


@given(st.integers(0, 2**63 - 1))
def test_timestamps(now):
    stamp = timestamp(now).decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp)
    assert int(stamp[-10:-1]) == now % 10**9


def test_reopen_after_rotation(tmp_path):
    log = LogFile(str(tmp_path / "log"))
    log.write(b"a\n")
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.write(b"b\n")
    log.reopen()
    log.write(b"c\n")
    log.close()
    assert (tmp_path / "log.1").read_bytes() == b"a\nb\n"
    assert (tmp_path / "log").read_bytes() == b"c\n"


def test_a_failed_reopen_keeps_the_old_file(tmp_path):
    log = LogFile(str(tmp_path / "log"))
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").mkdir()
    with pytest.raises(IsADirectoryError):
        log.reopen()
    log.write(b"still\n")
    log.close()
    assert (tmp_path / "log.1").read_bytes() == b"still\n"


def test_a_disk_that_fails_drops_whole_records_and_says_so(tmp_path, monkeypatch, capfd):
    log = LogFile(str(tmp_path / "log"))
    log.write(b"0 stdout F kept\n")
    real = os.write
    space = [20]

    def limited(fd, data):
        if fd != log._file:
            return real(fd, data)
        if not space[0]:
            raise OSError(28, "No space left on device")
        done = real(fd, bytes(data)[: space[0]])
        space[0] -= done
        return done

    monkeypatch.setattr(os, "write", limited)
    log.write(b"0 stdout F one\n0 stdout F two\n")
    log.write(b"0 stdout F three\n")
    assert log.dropped == 15 + 17
    monkeypatch.undo()
    log.write(b"0 stdout F four\n")
    log.close()
    written = (tmp_path / "log").read_bytes().split(b"\n")
    assert written[:2] == [b"0 stdout F kept", b"0 stdout F one"]
    assert written[2].endswith(
        b" stderr F cri-jails: 32 bytes of this log were lost: No space left on device"
    )
    assert written[3:] == [b"0 stdout F four", b""]
    assert log.dropped == 0
    assert capfd.readouterr().err.count("output is dropped") == 1


def test_throughput(tmp_path):
    """The aim is 100 MB/s on an idle machine; this fails only for what is wrong by an order of magnitude."""
    line = b"2026 some ordinary line of a log with about a hundred bytes in it, as programs tend to write them .\n"
    chunk = (line * (65536 // len(line) + 1))[:65536]
    log, framer = LogFile(str(tmp_path / "log")), Framer("stdout")
    start = time.perf_counter()
    for _ in range(320):
        log.write(framer.feed(chunk, time.time_ns()))
    rate = 320 * len(chunk) / (time.perf_counter() - start) / 1e6
    print(f"{rate:.0f} MB/s")
    log.close()
    assert rate > 10
