"""A container's stdin: turns, back pressure, and its end."""

import os
import random
import socket
import struct

import pytest

from cri.sandbox.warden import stdin
from cri.sandbox.warden.stdin import ENDED_ONCE, NOBODY_READS, PROGRAM_ENDED, Stdin


class Box:
    """A stdin with a program that may read it."""

    def __init__(self, loop, pipes, **kind):
        self.loop = loop
        self.pipes = pipes
        self.reads, self.writes = pipes()
        self.stdin = Stdin(loop, self.writes, **{"once": False, "terminal": False, **kind})

    def client(self):
        source, client = self.pipes()
        ends = []
        return client, self.stdin.add(source, lambda: ends.append(1)), ends

    def is_closed(self):
        try:
            return os.read(self.reads, 10) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def box(loop, pipes):
    return Box(loop, pipes)


@pytest.fixture
def once(loop, pipes):
    return Box(loop, pipes, once=True)


def test_one_client_ends_and_the_next_goes_on(box):
    client, _, ends = box.client()
    os.write(client, b"one ")
    os.close(client)
    box.loop.run(lambda: ends)
    second, _, _ = box.client()
    os.write(second, b"two")
    box.loop.idle()
    assert os.read(box.reads, 100) == b"one two"
    assert box.stdin.closed == ""


def test_once_the_first_that_ends_is_the_end(once):
    client, _, ends = once.client()
    other, _, others = once.client()
    os.write(client, b"all")
    os.close(client)
    once.loop.run(lambda: ends and others)
    assert once.stdin.closed == ENDED_ONCE
    assert os.read(once.reads, 100) == b"all"
    assert once.is_closed()
    with pytest.raises(BrokenPipeError):
        os.write(other, b"x")


def test_once_one_that_leaves_is_the_end_and_is_heard(once):
    client, source, ends = once.client()
    os.write(client, b"last words")
    once.stdin.remove(source)
    assert ends == []
    assert os.read(once.reads, 100) == b"last words"
    assert once.is_closed()


def test_a_terminal_has_no_end(loop, pipes):
    box = Box(loop, pipes, once=True, terminal=True)
    client, _, ends = box.client()
    os.close(client)
    loop.run(lambda: ends)
    assert box.stdin.closed == ""
    os.set_blocking(box.reads, False)
    assert not box.is_closed()


@pytest.mark.parametrize("leaves", [False, True])
def test_the_end_comes_after_what_is_pending(once, leaves):
    client, source, _ = once.client()
    data = bytearray()
    os.set_blocking(client, False)
    with pytest.raises(BlockingIOError):
        for _ in range(100):
            piece = random.Random(len(data)).randbytes(65536)
            data += piece[: os.write(client, piece)]
            once.loop.idle(0.01)
    if leaves:
        once.stdin.remove(source)
    else:
        os.close(client)
    got = bytearray()
    os.set_blocking(once.reads, False)

    def take():
        try:
            more = os.read(once.reads, 1000)
        except BlockingIOError:
            return False
        got.extend(more)
        return not more

    once.loop.run(take)
    assert got == data


def test_a_program_that_does_not_read_holds_its_clients_up(box):
    client, _, _ = box.client()
    other, _, _ = box.client()
    os.set_blocking(client, False)
    sent = 0
    with pytest.raises(BlockingIOError):
        for _ in range(100):
            sent += os.write(client, b"x" * 65536)
            box.loop.idle(0.01)
    assert sent <= 8 * 65536
    os.write(other, b"y")
    box.loop.idle()
    got = bytearray()

    def take():
        os.set_blocking(box.reads, False)
        try:
            got.extend(os.read(box.reads, 10_000))
        except BlockingIOError:
            return False
        return len(got) == sent + 1

    box.loop.run(take)
    assert got.count(b"x") == sent
    assert got.count(b"y") == 1
    late, _, ends = box.client()
    os.close(late)
    box.loop.run(lambda: ends)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_program_that_closes_its_stdin(box, waiting):
    client, _, ends = box.client()
    if waiting:
        os.set_blocking(client, False)
        with pytest.raises(BlockingIOError):
            for _ in range(100):
                os.write(client, b"x" * 65536)
                box.loop.idle(0.01)
    os.close(box.reads)
    if not waiting:
        os.write(client, b"x")
    box.loop.run(lambda: ends)
    assert box.stdin.closed == NOBODY_READS
    with pytest.raises(BrokenPipeError):
        os.write(client, b"x")


def test_the_end_of_the_program(box):
    _client, _, ends = box.client()
    box.stdin.close(PROGRAM_ENDED)
    box.stdin.close("something else")
    assert (box.stdin.closed, ends) == (PROGRAM_ENDED, [1])
    assert box.is_closed()
    box.loop.idle()


def fill(fd):
    """Write until no more fits."""
    os.set_blocking(fd, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(fd, b"x" * 65536)


def make_busy(box):
    """Have the program be waited for: it does not read, and its pipe is full."""
    client, source, _ = box.client()
    for _ in range(2):
        fill(client)
        box.loop.idle(0.02)
    fill(client)
    return client, source


def test_clients_that_come_and_go_pile_up_no_more_than_a_bit(box, monkeypatch, capfd):
    monkeypatch.setattr(stdin, "_LAST_WORDS", 200_000)
    for _ in range(20):
        client, source, _ = box.client()
        fill(client)
        box.stdin.remove(source)
        os.close(client)
    assert 200_000 <= len(box.stdin._waiting) < 200_000 + 65536
    assert "what a client wrote at last is lost" in capfd.readouterr().err
    before = len(box.stdin._waiting)
    client, source, _ = box.client()
    os.close(client)
    box.stdin.remove(source)
    assert capfd.readouterr().err == ""
    assert len(box.stdin._waiting) == before


@pytest.mark.parametrize("kind", ["reset", "terminal"])
def test_a_client_whose_descriptor_fails_is_one_that_ends(box, kind):
    ends = []
    if kind == "reset":
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
        ):
            peer, _ = server.accept()
            box.stdin.add(peer.detach(), lambda: ends.append(1))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        master, slave = os.openpty()
        box.stdin.add(master, lambda: ends.append(1))
        os.close(slave)
    box.loop.run(lambda: ends, 2)
    assert box.stdin.closed == ""
    assert not box.stdin._sources


def test_a_source_that_cannot_be_waited_for_is_refused_while_the_program_is_waited_for(box, tmp_path):
    client, _ = make_busy(box)
    (tmp_path / "file").write_text("x")
    file = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        box.stdin.add(file, lambda: None)
    except PermissionError:  # epoll(7); kqueue(2) takes files
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
    drain(box, 200_000)
    os.write(client, b"after")
    box.loop.run(lambda: drain(box, 1).endswith(b"after"))
    assert box.stdin.closed == ""


def test_a_source_that_cannot_be_waited_for_any_more_ends_alone(box, monkeypatch):
    client, bad = make_busy(box)
    good, _, _ = box.client()
    ends = []
    bad.ended = lambda: ends.append(1)
    watch = box.loop.watch

    def refuse(file, events, callback):
        if file == bad.fd:
            raise PermissionError(1, "Operation not permitted")
        watch(file, events, callback)

    monkeypatch.setattr(box.loop, "watch", refuse)
    drain(box, 200_000)
    box.loop.run(lambda: ends)
    os.write(good, b"still here")
    box.loop.run(lambda: drain(box, 1).endswith(b"still here"))
    with pytest.raises(BrokenPipeError):
        os.write(client, b"x")


def drain(box, size):
    """What the program reads until nothing more is there."""
    got = b""
    os.set_blocking(box.reads, False)
    while True:
        try:
            got += os.read(box.reads, max(size, 1 << 20))
        except BlockingIOError:
            box.loop.idle(0.02)
            try:
                got += os.read(box.reads, 1 << 20)
            except BlockingIOError:
                return got
