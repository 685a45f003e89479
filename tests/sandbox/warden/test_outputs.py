"""What a container prints gets to the log in its order, and as fast as it comes."""

import itertools
import os
import subprocess
import sys
import time
import tty
from pathlib import Path

import pytest

from cri.sandbox.warden import outputs
from cri.sandbox.warden.logs import LogFile
from cri.sandbox.warden.outputs import Outputs

TURNS = """
import os, sys, time
for n in range(int(sys.argv[1])):
    for fd, number in ((1, 3 * n), (1, 3 * n + 1), (2, 3 * n + 2)):
        os.write(fd, b"%d\\n" % number)
        end = time.perf_counter() + float(sys.argv[2])
        while time.perf_counter() < end:
            pass
"""


@pytest.fixture
def log(tmp_path):
    made = LogFile(str(tmp_path / "log"))
    yield made
    made.close()


@pytest.fixture
def streams(loop, pipes, log):
    """The outputs, and the ends that a program writes to."""
    made = Outputs(loop, log)
    ends = []
    for name in ("stdout", "stderr"):
        reads, writes = pipes()
        made.add(name, reads)
        ends.append(writes)
    yield made, *ends
    made.close()


def texts(log):
    return [record.split(b" ", 3)[3] for record in Path(log.path).read_bytes().splitlines()]


def test_what_rests_is_logged_before_what_came_later(streams, loop, log, monkeypatch):
    monkeypatch.setattr(outputs, "_GATHER", 0.5)
    _, stdout, stderr = streams
    os.write(stdout, b"one\n")
    loop.idle(0.02)
    os.write(stdout, b"two\n")
    loop.idle(0.02)  # from now on stdout rests
    os.write(stdout, b"three\n")
    loop.idle(0.02)
    assert texts(log) == [b"one", b"two"]
    os.write(stderr, b"four\n")
    loop.run(lambda: len(texts(log)) == 4)
    assert texts(log) == [b"one", b"two", b"three", b"four"]
    # Now both print, and neither rests: nobody could tell what came first.
    for number in range(6):
        os.write((stdout, stderr)[number % 2], b"%d\n" % number)
        loop.idle(0.02)
    assert texts(log)[4:] == [b"%d" % number for number in range(6)]


def test_what_rests_is_logged_first_at_the_exit(streams, loop, log, monkeypatch):
    monkeypatch.setattr(outputs, "_GATHER", 5)
    made, stdout, stderr = streams
    for _ in range(2):
        os.write(stderr, b"first\n")
        loop.idle(0.02)
    os.write(stderr, b"then\n")
    os.write(stdout, b"last\n")
    made.drain()
    assert texts(log) == [b"first", b"first", b"then", b"last"]


def inversions(loop, pipes, path, lines, gap):
    log = LogFile(str(path))
    made = Outputs(loop, log)
    ends = []
    for name in ("stdout", "stderr"):
        reads, writes = pipes()
        made.add(name, reads)
        ends.append(writes)
    program = subprocess.Popen(
        [sys.executable, "-c", TURNS, str(lines), str(gap)], stdout=ends[0], stderr=ends[1]
    )
    for end in ends:
        os.close(end)
    loop.run(lambda: not made._outputs, 30)
    program.wait()
    log.close()
    numbers = [int(text) for text in texts(log)]
    assert sorted(numbers) == list(range(3 * lines))
    return sum(a > b for a, b in itertools.pairwise(numbers))


def test_two_streams_stay_in_their_order(loop, pipes, tmp_path, monkeypatch):
    """As well as without any rest: then only a warden that was not run for as long as a gap mixes them up."""
    rested = min(inversions(loop, pipes, tmp_path / f"rested-{n}", 300, 0.0005) for n in range(3))
    monkeypatch.setattr(outputs, "_GATHER", 0)
    watched = max(inversions(loop, pipes, tmp_path / f"watched-{n}", 300, 0.0005) for n in range(2))
    print(f"{rested} of 900 lines, {watched} without rests")
    assert rested <= 30 + 2 * watched  # 180, if it rests whatever the other stream does


def rate(loop, pipes, path, *, terminal, size, count):
    """Bytes a second of a program that writes pieces of a size, and how many reads it took."""
    log = LogFile(str(path))
    made = Outputs(loop, log)
    if terminal:
        reads, writes = os.openpty()
        tty.setraw(writes)
    else:
        reads, writes = pipes()
    silent, other = pipes()
    made.add("stdout", reads)
    made.add("stderr", silent)
    turns = 0

    def take(output, took=made._take):
        nonlocal turns
        turns += 1
        return took(output)

    made._take = take
    start = time.perf_counter()
    with subprocess.Popen(
        ["dd", "if=/dev/zero", f"bs={size}", f"count={count}"], stdout=writes, stderr=subprocess.DEVNULL
    ):
        os.close(writes)
        loop.run(lambda: len(made._outputs) == 1, 60)
    took = time.perf_counter() - start
    os.close(other)
    made.close()
    log.close()
    return size * count / took, turns


def best_rate(loop, pipes, tmp_path, **program):
    return max(rate(loop, pipes, tmp_path / "log", **program)[0] for _ in range(3))


def test_a_terminal_is_not_slowed_down(loop, pipes, tmp_path, monkeypatch):
    """It holds too little to be left alone for a while."""
    program = {"terminal": True, "size": 4000, "count": 1500}
    ratios = []
    for _ in range(3):  # others use the processors too
        with monkeypatch.context() as patch:
            patch.setattr(outputs, "_GATHER", 0)
            at_once = best_rate(loop, pipes, tmp_path, **program)
        ratios.append(best_rate(loop, pipes, tmp_path, **program) / at_once)
        if ratios[-1] > 0.5:
            return
    pytest.fail(f"of the rate without gathering: {ratios}")


def test_little_pieces_in_quick_succession_are_read_together(loop, pipes, tmp_path):
    _, reads = rate(loop, pipes, tmp_path / "log", terminal=False, size=100, count=100_000)
    assert reads < 10_000
