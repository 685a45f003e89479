"""A container's stdin: turns, back pressure, and its end."""

import os
import random

import pytest

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
