"""Whole ways on Linux: tree, user, program, terminal; and the errors that people read."""

import os
import select
import shutil
import signal
import time
from pathlib import Path

import pytest

from cri.sandbox.host import StartError, UnfitRequestError
from cri.sandbox.linux import ways
from cri.sandbox.linux.ways import Surroundings
from cri.sandbox.spec import ContainerSpec, Credentials, MountSpec, ProcessSpec, TerminalSize, UserSpec
from cri.sandbox.warden import launching
from cri.sandbox.warden.driver import Plan, Target
from cri.sandbox.warden.launch import Stdio
from cri.sandbox.warden.loop import Loop

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(
        not Path("/bin/busybox").exists() or os.geteuid() != 0, reason="needs root and busybox"
    ),
]


@pytest.fixture(scope="module")
def loop():
    numbers = (1, 2, 3, 10, 12, 13, 15, 17)
    before = {number: signal.getsignal(number) for number in numbers}
    made = Loop()
    made.catch_signals({})
    yield made
    for key in list(made._selector.get_map().values()):
        key.fileobj.close()
    os.close(signal.set_wakeup_fd(-1))
    made._selector.close()
    for number, handler in before.items():
        signal.signal(number, handler)


class Subject:
    def __init__(self, loop, launcher, make_way):
        self.loop, self.failure, self.report, self.pid, self.started, self.status = (
            loop,
            None,
            None,
            0,
            False,
            None,
        )
        launching.follow(loop, launcher, make_way(self._reported), self, self._start, self._end)

    def _reported(self, report):
        self.report = report

    def born(self, pid):
        self.pid = pid

    def _start(self):
        self.started = True

    def _end(self, status):
        self.status = os.waitstatus_to_exitcode(status)

    def until(self, what):
        end = time.monotonic() + 10
        while (found := getattr(self, what)) is None or found is False:
            assert time.monotonic() < end
            self.loop.later(0.05, lambda: None)
            self.loop.turn()
        return self


def make_plan(directory, *argv, mounts=(), **process):
    layer = directory / "layer"
    for name in ("bin", "etc", "tmp"):
        (layer / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", layer / "bin/busybox")
    for applet in ("sh", "cat", "id", "ls", "sleep", "tty", "true", "stty"):
        os.link(layer / "bin/busybox", layer / "bin" / applet)
    (layer / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1234:1235::/home:/bin/sh\n")
    (layer / "etc/group").write_text("more:x:77:user\n")
    (layer / "to-proc").symlink_to("/proc")
    (directory / "root").mkdir()
    spec = ContainerSpec(
        "c", "s", str(directory), (), ProcessSpec(argv, ("PATH=/sbin:/bin",), **process), mounts=mounts
    )
    root = {"kind": "copy", "source": str(layer), "target": str(directory / "root")}
    return Plan(spec, {"root": root, "cgroup": {"version": 1, "directories": {}}})


def start(loop, starter, plan, stdio):
    pod = Surroundings("pod", "/dev/shm", None)
    return Subject(loop, starter.launcher, lambda reported: ways.start(plan, stdio, pod, reported))


def test_a_start_and_an_exec(loop, starter, tmp_path):
    plan = make_plan(tmp_path, "sh", "-c", "id; exec sleep 100", user=UserSpec("user"))
    ours, theirs = os.pipe()
    first = start(loop, starter, plan, Stdio(None, theirs, theirs)).until("started")
    assert first.failure is None
    assert first.report.credentials == Credentials(1234, 1235, (77, 1235))
    assert first.report.home == "/home"
    assert select.select([ours], [], [], 10)[0]
    assert os.read(ours, 1000).startswith(b"uid=1234(user) gid=1235 groups=77(more),1235")

    target, process = Target(plan, first.pid, first.report), ProcessSpec(("sh", "-c", "exit 7"))

    def way(reported):
        return ways.exec_(target, process, Stdio(), (), hostname="pod", oom_score=None, reported=reported)

    assert Subject(loop, starter.launcher, way).until("status").status == 7
    os.kill(first.pid, signal.SIGKILL)
    assert first.until("status").status == -signal.SIGKILL
    os.close(ours)
    os.close(theirs)


def test_a_terminal(loop, starter, tmp_path):
    plan = make_plan(
        tmp_path, "sh", "-c", "tty; stty size; exec sleep 1", tty=True, terminal_size=TerminalSize(81, 23)
    )
    first = start(loop, starter, plan, Stdio(tty=True)).until("started")
    assert first.failure is None
    text = b""
    while b"81" not in text:
        assert select.select([first.report.pty], [], [], 10)[0]
        text += os.read(first.report.pty, 1000)
    assert text.split() == [b"/dev/console", b"23", b"81"] or text.split() == [b"/dev/pts/0", b"23", b"81"]
    os.close(first.report.pty)
    first.until("status")


def test_errors_are_those_that_people_know(loop, starter, tmp_path):
    cases = {
        ("nothing",): 'exec "nothing": executable file not found in $PATH',
        ("/no/thing",): "stat /no/thing: no such file or directory",
        ("/etc/passwd",): "permission denied",
    }
    for number, (argv, text) in enumerate(cases.items()):
        plan = make_plan(tmp_path / str(number), *argv)
        failure = start(loop, starter, plan, Stdio()).until("status").failure
        assert isinstance(failure, StartError)
        assert text.rpartition(": ")[2] in str(failure)
    plan = make_plan(tmp_path / "user", "true", user=UserSpec("nobody-here"))
    failure = start(loop, starter, plan, Stdio()).until("started").failure
    assert "unable to find user nobody-here" in str(failure)
    plan = make_plan(tmp_path / "link", "true", mounts=(MountSpec("/tmp", "/to-proc"),))
    failure = start(loop, starter, plan, Stdio()).until("started").failure
    assert isinstance(failure, UnfitRequestError)
    assert "mount elsewhere" in str(failure)


def test_a_proc_is_passed_from_hand_to_hand(loop, starter, tmp_path):
    kept = []

    def begin(name, argv, pids=None, proc=None, **changes):
        ours, theirs = os.pipe()
        plan = make_plan(tmp_path / name, *argv, **changes)
        pod = Surroundings("pod", "/dev/shm", pids, proc, kept.append)
        stdio = Stdio(None, theirs, theirs)
        subject = Subject(loop, starter.launcher, lambda reported: ways.start(plan, stdio, pod, reported))
        subject.until("started")
        os.close(theirs)
        return subject, os.fdopen(ours, "rb")

    def beside(pid):
        return os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    first, output = begin("first", ["sleep", "100"])
    output.close()
    look = ["sh", "-c", "echo $$; cat /proc/1/cmdline"]
    for name in ("second", "third"):
        (proc,) = kept
        kept.clear()
        # A failure after it was taken leaves the next one all the same.
        failed, output = begin(
            f"{name}-fails", look, beside(first.pid), proc, mounts=(MountSpec("/tmp", "/to-proc"),)
        )
        output.close()
        assert failed.failure is not None
        (proc,) = kept
        kept.clear()
        subject, output = begin(name, look, beside(first.pid), proc)
        assert subject.failure is None
        with output:
            text = output.read()
        subject.until("status")
        assert b"sleep\x00100\x00" in text, text
        assert not text.startswith(b"1\n")
    os.close(*kept)
    kept.clear()

    node, output = begin(
        "node", ["sh", "-c", "echo $$; read x < /proc/$$/comm; echo $x"], None, ways.build_plan.NODE_PROC
    )
    with output:
        assert output.read() == f"{node.pid}\nsh\n".encode()
    node.until("status")
    assert not kept
    os.kill(first.pid, signal.SIGKILL)
    first.until("status")
