"""Ways by a real launcher, in a real loop."""

import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.launcher import _build
from cri.sandbox.launcher.client import Launcher
from cri.sandbox.launcher.operations import Operation
from cri.sandbox.launcher.plan import Step
from cri.sandbox.launcher.steps import execute, write
from cri.sandbox.warden import launching
from cri.sandbox.warden.launching import Pause, Stage, StepFailedError
from cri.sandbox.warden.loop import Loop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on FreeBSD, porters take a reaper")

STREAMS = Step(Operation.STREAMS, (-1, -1, -1, os.geteuid()))
FORK = Step(Operation.FORK)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    path = tmp_path_factory.mktemp("launcher") / "launcher"
    _build.compile_launcher(path)
    started = Launcher(path)
    yield started
    started.close()


@pytest.fixture(scope="module")
def loop():
    before = {number: signal.getsignal(number) for number in (1, 2, 3, 10, 12, 13, 15, 17)}
    made = Loop()
    made.catch_signals({})
    yield made
    for key in list(made._selector.get_map().values()):
        key.fileobj.close()
    wake = signal.set_wakeup_fd(-1)
    os.close(wake)
    made._selector.close()
    for number, handler in before.items():
        signal.signal(number, handler)


class Subject:
    def __init__(self, loop, launcher, way, kept=()):
        self.failure, self.pid, self.started, self.status = None, 0, False, None
        launching.follow(loop, launcher, way, self, self._start, self._end, kept)

    def born(self, pid):
        self.pid = pid

    def _start(self):
        assert self.status is None
        self.started = True

    def _end(self, status):
        assert self.started
        self.status = os.waitstatus_to_exitcode(status)


def turn(loop, until):
    end = time.monotonic() + 10
    while not until():
        assert time.monotonic() < end
        loop.later(0.05, lambda: None)
        loop.turn()


def run(*argv):
    return Stage([STREAMS, FORK, execute([argv[0]], argv, {})])


def test_a_program_starts_and_ends(loop, launcher):
    def way():
        assert (yield run("/bin/sh", "-c", "exit 3")) == []

    subject = Subject(loop, launcher, way())
    assert not subject.started
    turn(loop, lambda: subject.status is not None)
    assert (subject.failure, subject.status) == (None, 3)
    assert (loop.births, loop.children) == (0, {})


def test_what_one_stage_sends_the_next_one_uses(loop, launcher, tmp_path):
    said = tmp_path / "said"
    said.write_text("")

    def way():
        (fd,) = yield Stage(
            [Step(Operation.OPEN, (70, os.O_WRONLY), (os.fsencode(said),)), Step(Operation.SEND, (70,))]
        )
        try:
            streams = Step(Operation.STREAMS, (-1, 65, 65, 0))
            yield Stage([streams, FORK, execute(["/bin/echo"], ["echo", "hello"], {})], [fd])
        finally:
            os.close(fd)

    subject = Subject(loop, launcher, way())
    turn(loop, lambda: subject.status is not None)
    assert (subject.status, said.read_text()) == (0, "hello\n")


def test_a_failed_step_can_be_gone_around_or_is_told(loop, launcher):
    failed = write("/nowhere/at/all", "0", subject="join the impossible")

    reasons = []

    def way(*, again):
        try:
            yield Stage([failed])
        except StepFailedError as error:
            if not again:
                reasons.append(error.step)
                raise HostError("join", "it", "no", error.errno) from error
        yield run("/bin/true")

    first, second = (Subject(loop, launcher, way(again=again)) for again in (True, False))
    third = Subject(loop, launcher, iter_of(Stage([failed])))
    turn(loop, lambda: first.status is not None and second.started and third.started)
    assert first.failure is None
    assert reasons == [failed]
    assert (second.failure.reason, second.failure.errno, second.pid) == ("no", errno.ENOENT, 0)
    assert "join the impossible" in third.failure.reason


def iter_of(stage):
    yield stage


def test_what_cannot_be_executed_is_started_in_vain_and_reaped(loop, launcher):
    subject = Subject(loop, launcher, iter_of(run("/nowhere")))
    turn(loop, lambda: subject.status is not None)
    assert subject.failure.errno == errno.ENOENT
    assert subject.status == 127


def test_many_ways_at_once_lose_no_end(loop, launcher):
    subjects = [Subject(loop, launcher, iter_of(run("/bin/true"))) for _ in range(40)]
    turn(loop, lambda: all(one.status is not None for one in subjects))
    assert {one.status for one in subjects} == {0}
    assert len({one.pid for one in subjects}) == 40
    assert (loop.births, loop.children) == (0, {})


def test_a_launcher_that_was_killed_comes_back(loop, tmp_path):
    path = tmp_path / "launcher"
    _build.compile_launcher(path)
    launcher = Launcher(path)
    path.unlink()
    killed = launcher.pid
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    subject = Subject(loop, launcher, iter_of(run("/bin/true")))
    turn(loop, lambda: subject.status is not None)
    assert (subject.failure, subject.status) == (None, 0)
    assert launcher.pid != killed
    launcher.close()
    assert "was closed" in Subject(loop, launcher, iter_of(run("/bin/true"))).failure.reason


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), OSError(5, "x"), RuntimeError("x")])
def test_whatever_a_way_raises_it_ends(loop, launcher, error):
    def way():
        yield Stage([])
        raise error

    subject = Subject(loop, launcher, way())
    turn(loop, lambda: subject.started)
    assert "x" in subject.failure.reason


def test_who_is_killed_on_the_way_has_not_started(loop, launcher, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sent = Step(Operation.OPEN, (70, os.O_RDONLY), (b"/dev/null",)), Step(Operation.SEND, (70,))
    # Opening that to write waits for somebody who reads.
    subject = Subject(loop, launcher, iter_of(Stage([*sent, write(str(fifo), ""), *sent])))
    children = Path(f"/proc/self/task/{os.getpid()}/children")

    def kill_others():
        for pid in map(int, children.read_text().split()):
            if pid != launcher.pid:
                os.kill(pid, signal.SIGKILL)
        return subject.started

    turn(loop, kill_others)
    assert subject.failure.reason == "launch: it ended before its program ran"


def test_a_report_that_somebody_keeps_open_holds_nobody_up(loop, launcher, monkeypatch):
    kept = []
    launch = launcher.launch

    def keeping(steps, descriptors=()):
        report = launch(steps, descriptors)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept.append(theirs)
        with report:
            while received := report.recv(100):
                theirs.send(received)
        return ours

    monkeypatch.setattr(launcher, "launch", keeping)
    subject = Subject(loop, launcher, iter_of(run("/bin/sh", "-c", "exit 4")))
    turn(loop, lambda: subject.status is not None)
    assert (subject.failure, subject.status) == (None, 4)
    for one in kept:
        one.close()


def test_a_way_pauses_until_it_is_called(loop, launcher):
    waiting = []

    def way():
        yield Pause(waiting.append)
        yield run("/bin/true")

    subject = Subject(loop, launcher, way())
    go_on, *none = waiting
    assert not none
    loop.later(0.05, go_on)
    turn(loop, lambda: subject.status is not None)
    assert subject.failure is None


def test_what_a_way_was_given_is_closed_with_it(loop, launcher):
    ours, theirs = os.pipe()
    subject = Subject(loop, launcher, iter_of(run("/bin/true")), [theirs])
    assert not subject.started
    turn(loop, lambda: subject.started)
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_the_end_is_told_though_the_start_is_not(loop, launcher):
    subject, ended = Subject.__new__(Subject), []
    subject.pid = 0

    def started():
        raise OSError(errno.EMFILE, "Too many open files")

    launching.follow(loop, launcher, iter_of(run("/bin/sh", "-c", "exit 3")), subject, started, ended.append)
    turn(loop, lambda: ended)
    assert ended == [3 << 8]
