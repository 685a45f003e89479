"""Readers that are attached to a container's output: every byte for those who read, no long wait for those who do not."""

import itertools
import os
import random
import threading
import time
from pathlib import Path

import pytest

from cri.sandbox.warden import attachments
from cri.sandbox.warden.attachments import BACKLOG, IDLE, UNREAD
from cri.sandbox.warden.logs import LogFile
from cri.sandbox.warden.outputs import Outputs
from cri.sandbox.warden.stdin import Stdin


def text(log: Path) -> bytes:
    """What a log has, without its prefixes."""
    records = log.read_bytes().split(b"\n")
    parts = [record.split(b" ", 3) for record in records[:-1]]
    assert records[-1] == b""
    return b"".join(part[3] + (b"\n" if part[2] == b"F" else b"") for part in parts)


def log_of(log: Path, stream: bytes) -> bytes:
    parts = [record.split(b" ", 3) for record in log.read_bytes().split(b"\n")[:-1]]
    return b"".join(part[3] + (b"\n" if part[2] == b"F" else b"") for part in parts if part[1] == stream)


class Program:
    """What prints, and its warden's side of it."""

    def __init__(self, loop, pipes, path, *, stdin=False, once=False):
        self.loop = loop
        self.pipes = pipes
        self.path = path
        self.log = LogFile(str(path))
        self.outputs = Outputs(loop, self.log)
        out, self.stdout = pipes()
        err, self.stderr = pipes()
        self.outputs.add("stdout", out)
        self.outputs.add("stderr", err)
        self.stdin = None
        if stdin:
            self.reads, writes = pipes()
            self.stdin = Stdin(loop, writes, once=once, terminal=False)

    def attach(self, *streams, source=None):
        """The reading ends, and the reasons of the end."""
        pairs = {stream: self.pipes() for stream in streams}
        reasons = []
        attachment = self.outputs.attachments.attach(
            self.stdin, source, {name: pair[1] for name, pair in pairs.items()}, reasons.append
        )
        for reader, _ in pairs.values():
            os.set_blocking(reader, False)
        return attachment, [reader for reader, _ in pairs.values()], reasons

    def say(self, data, stream=None):
        """Print from a thread, as a program that waits while nobody takes it."""
        fd = self.stdout if stream is None else stream

        def write():
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread

    def heard(self, thread):
        """Run until all that a thread says is in the log."""
        self.loop.run(lambda: not thread.is_alive(), 30)
        self.outputs.drain()

    def end(self):
        os.close(self.stdout)
        os.close(self.stderr)


@pytest.fixture
def program(loop, pipes, tmp_path):
    return Program(loop, pipes, tmp_path / "log")


def read(fd, size=1 << 20):
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None


def test_all_see_all_from_when_they_came(program):
    _, (early,), _ = program.attach("stdout")
    os.write(program.stdout, b"one\n")
    program.loop.idle()
    _, (late, errors), _ = program.attach("stdout", "stderr")
    os.write(program.stdout, b"two\n")
    os.write(program.stderr, b"oops\n")
    program.loop.idle()
    assert read(early) == b"one\ntwo\n"
    assert read(late) == b"two\n"
    assert read(errors) == b"oops\n"
    assert log_of(program.path, b"stdout") == b"one\ntwo\n"
    assert log_of(program.path, b"stderr") == b"oops\n"


def test_a_detached_one_gets_no_more(program):
    attachment, (reader,), reasons = program.attach("stdout")
    attachment.close()
    attachment.close()
    assert reasons == ["it was detached"]
    os.write(program.stdout, b"one\n")
    program.loop.idle()
    assert read(reader) == b""
    assert text(program.path) == b"one\n"


def test_the_end_of_the_output_is_the_end(program):
    _, readers, reasons = program.attach("stdout", "stderr")
    os.write(program.stdout, b"last words")
    os.close(program.stdout)
    program.loop.idle()
    assert [read(reader) for reader in readers] == [b"last words", None]
    assert read(readers[0]) == b""
    assert reasons == []
    os.close(program.stderr)
    program.loop.run(lambda: reasons)
    assert reasons == [""]
    assert read(readers[1]) == b""
    _, (reader,), after = program.attach("stdout")
    assert (read(reader), after) == (b"", [""])


def test_a_reader_that_never_reads_delays_the_log_by_a_second_once(program):
    _, (reader,), reasons = program.attach("stdout")
    data = b"x" * 99 + b"\n"
    data *= 80_000
    start = time.monotonic()
    thread = program.say(data)
    program.heard(thread)
    took = time.monotonic() - start
    assert reasons == [IDLE]
    assert 1.0 <= took < 3.0
    assert text(program.path) == data
    kept = b"".join(iter(lambda: read(reader), b""))
    assert data.startswith(kept)


def test_while_it_is_waited_for_the_program_waits_too(program):
    program.attach("stdout")
    data = b"x" * 20_000_000
    thread = program.say(data)
    program.loop.idle(0.5)
    assert thread.is_alive()
    assert program.path.stat().st_size < 5_000_000
    program.heard(thread)


def test_an_idle_reader_that_nobody_waits_for_stays(program):
    _, (reader,), reasons = program.attach("stdout")
    data = b"x" * (BACKLOG // 2)
    program.say(data)
    program.loop.idle(1.5)
    assert reasons == []
    got = bytearray()

    def take():
        got.extend(read(reader) or b"")
        return len(got) == len(data)

    program.loop.run(take)
    assert got == data


def test_a_slow_reader_gets_every_byte(program):
    """Slower than it may be in one piece: a backlog takes it several seconds."""
    _, (reader,), reasons = program.attach("stdout")
    data = random.Random(5).randbytes(3 * BACKLOG)
    thread = program.say(data)
    got = bytearray()
    resting = [0.0]

    def take():
        if time.monotonic() >= resting[0]:
            got.extend(read(reader, 128 * 1024) or b"")
            resting[0] = time.monotonic() + 0.1
        return len(got) == len(data)

    program.loop.run(take, 30)
    thread.join()
    assert got == data
    assert reasons == []
    program.end()
    program.loop.run(lambda: reasons)
    assert reasons == [""]


def test_what_waits_at_the_end_is_delivered(program):
    _, (reader,), reasons = program.attach("stdout")
    data = b"y" * (BACKLOG // 2)
    thread = program.say(data)
    program.loop.run(lambda: not thread.is_alive())
    program.outputs.drain()
    program.end()
    program.outputs.drain()
    program.log.close()
    assert reasons == []
    got = bytearray()

    def take():
        got.extend(read(reader, 64 * 1024) or b"")
        return bool(reasons)

    program.loop.run(take)
    got += b"".join(iter(lambda: read(reader), b""))
    assert got == data
    assert reasons == [""]


def test_nobody_waits_for_ever_at_the_end(program):
    _, (reader,), reasons = program.attach("stdout")
    thread = program.say(b"y" * (BACKLOG // 2))
    program.loop.run(lambda: not thread.is_alive())
    program.loop.idle()
    program.end()
    start = time.monotonic()
    program.loop.run(lambda: reasons)
    assert 0.9 <= time.monotonic() - start < 2
    assert reasons == [IDLE]
    assert reader


def test_a_reader_that_closes_one_output_keeps_the_other(program):
    _, (out, err), reasons = program.attach("stdout", "stderr")
    os.close(out)
    os.write(program.stdout, b"into the void\n")
    os.write(program.stderr, b"heard\n")
    program.loop.idle()
    assert read(err) == b"heard\n"
    assert reasons == []
    os.close(err)
    os.write(program.stderr, b"not heard\n")
    program.loop.run(lambda: reasons)
    assert reasons == [UNREAD]
    assert log_of(program.path, b"stderr") == b"heard\nnot heard\n"


def test_a_reader_that_closes_while_it_is_waited_for(program):
    _, (reader,), reasons = program.attach("stdout")
    data = b"z" * 8_000_000
    thread = program.say(data)
    program.loop.idle(0.3)
    os.close(reader)
    start = time.monotonic()
    program.heard(thread)
    assert time.monotonic() - start < 0.9
    assert reasons == [UNREAD]
    program.end()
    program.outputs.drain()
    assert text(program.path) == data


def test_little_pieces_cost_no_more_memory_than_their_bytes(program):
    import tracemalloc

    program.attach("stdout")
    tracemalloc.start()
    for _ in range(300_000):
        program.outputs.attachments.feed("stdout", b"x")
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 1_500_000


@pytest.mark.parametrize("seed", range(8))
def test_what_comes_through_is_what_the_log_has(program, seed, monkeypatch):
    """Several come and go, and read as they like: each has a piece of the log, from when it came to when it went."""
    monkeypatch.setattr(attachments, "BACKLOG", 64 * 1024)
    chance = random.Random(seed)
    data = b"".join(b"%d %s\n" % (n, b"x" * chance.randrange(200)) for n in range(40_000))
    thread = program.say(data)
    live, done = {}, []
    names = itertools.count()

    def turn():
        roll = chance.random()
        if roll < 0.2 and len(live) < 4:
            live[next(names)] = (*program.attach("stdout"), bytearray())
        elif roll < 0.25 and live:
            name = chance.choice(list(live))
            live[name][0].close()
            done.append(live.pop(name))
        for _, (reader,), _, got in live.values():
            if chance.random() < 0.6:
                got.extend(read(reader, chance.choice([10, 1000, 100_000])) or b"")
        return not thread.is_alive()

    program.loop.run(turn, 60)
    program.end()

    def finish():
        for _, (reader,), _, got in live.values():
            got.extend(read(reader, 1 << 20) or b"")
        return all(reasons for _, _, reasons, _ in live.values())

    program.loop.run(finish, 20)
    program.outputs.drain()
    assert text(program.path) == data
    assert done or live
    for _, (reader,), reasons, got in done:
        got.extend(b"".join(iter(lambda reader=reader: read(reader), b"")))
        assert bytes(got) in data
        assert reasons == ["it was detached"]
    for _, (reader,), reasons, got in live.values():
        got.extend(b"".join(iter(lambda reader=reader: read(reader), b"")))
        assert data.endswith(bytes(got))
        assert reasons == [""]
    assert sum(len(got) for _, _, _, got in [*done, *live.values()]) > 64 * 1024


def test_stdin_goes_on_when_nobody_reads_the_output(loop, pipes, tmp_path):
    program = Program(loop, pipes, tmp_path / "log", stdin=True)
    source, client = pipes()
    _, (reader,), reasons = program.attach("stdout", source=source)
    os.close(reader)
    os.write(program.stdout, b"lost\n")
    loop.idle()
    os.write(client, b"still here")
    loop.idle()
    assert os.read(program.reads, 100) == b"still here"
    assert reasons == []
    os.close(client)
    loop.run(lambda: reasons)
    assert reasons == [UNREAD]


def test_stdin_alone_ends_with_itself(loop, pipes, tmp_path):
    program = Program(loop, pipes, tmp_path / "log", stdin=True)
    source, client = pipes()
    _, _, reasons = program.attach(source=source)
    os.write(client, b"hello")
    os.close(client)
    loop.run(lambda: reasons)
    assert reasons == [""]
    assert os.read(program.reads, 100) == b"hello"


def test_a_source_that_cannot_be_waited_for_leaves_nothing_open(loop, pipes, tmp_path):
    program = Program(loop, pipes, tmp_path / "log", stdin=True)
    (tmp_path / "file").write_text("x")
    source = os.open(tmp_path / "file", os.O_RDONLY)
    reader, writer = pipes()
    reasons = []
    try:
        program.outputs.attachments.attach(program.stdin, source, {"stdout": writer}, reasons.append)
    except OSError:
        for fd in (source, writer):
            with pytest.raises(OSError):
                os.fstat(fd)
        assert reasons == []
    else:  # kqueue(2) takes files
        os.set_blocking(program.reads, False)
        loop.run(lambda: read(program.reads) == b"x")
    assert reader
