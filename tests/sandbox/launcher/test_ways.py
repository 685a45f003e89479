"""Whole ways on Linux: tree, user, program, terminal; and the errors that people read."""

import errno
import os
import select
import shutil
import signal
import time
from pathlib import Path

import pytest

from cri.sandbox.host import StartError, UnfitRequestError
from cri.sandbox.linux import shared_proc, ways
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.shared_proc import SharedProc
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
    def __init__(self, loop, launcher, make_way, kept=()):
        self.loop, self.failure, self.report, self.pid, self.started, self.status = (
            loop,
            None,
            None,
            0,
            False,
            None,
        )
        launching.follow(loop, launcher, make_way(self._reported), self, self._start, self._end, kept)

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
        return ways.exec_(
            target, process, Stdio(), Group(1, {}), hostname="pod", oom_score=None, reported=reported
        )

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


@pytest.mark.parametrize("old", [False, True])
def test_a_proc_is_shared(loop, starter, tmp_path, monkeypatch, old):
    kept = []

    def clone_mount(*_, **__):
        raise OSError(errno.EINVAL, "only what is mounted can be cloned")

    if old:  # Linux before 6.15
        monkeypatch.setattr(shared_proc.kernel, "clone_mount", clone_mount)

    def begin(name, argv, proc=None, pid=0, **changes):
        ours, theirs = os.pipe()
        plan = make_plan(tmp_path / name, *argv, **changes)

        def way(reported):
            if isinstance(proc, SharedProc):
                place = tmp_path / name / "place"
                place.mkdir()
                clone = yield from proc.clone(str(place))
                pids = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
                pod = Surroundings("pod", "/dev/shm", pids, clone, kept.append)
            else:
                pod = Surroundings("pod", "/dev/shm", None, proc, kept.append)
            yield from ways.start(plan, Stdio(None, theirs, theirs), pod, reported)

        return Subject(loop, starter.launcher, way, [theirs]), os.fdopen(ours, "rb")

    first, output = begin("first", ["sleep", "100"])
    first.until("started")
    output.close()
    proc = SharedProc(kept.pop())
    look = ["sh", "-c", "echo $$; cat /proc/1/cmdline"]
    several = [begin(f"beside{number}", look, proc, first.pid) for number in range(3)]
    for subject, output in several:
        assert subject.until("status").failure is None
        with output:
            text = output.read()
        assert b"sleep\x00100\x00" in text, text
        assert not text.startswith(b"1\n")
    proc.close()
    late, output = begin("late", look, proc, first.pid)
    output.close()
    assert "has ended" in late.until("started").failure.reason
    assert not kept
    os.kill(first.pid, signal.SIGKILL)
    first.until("status")


def test_a_container_may_see_the_nodes_processes(loop, starter, tmp_path):
    ours, theirs = os.pipe()
    plan = make_plan(tmp_path, "sh", "-c", "echo $$; read x < /proc/$$/comm; echo $x")
    pod = Surroundings("pod", "/dev/shm", None, ways.build_plan.NODE_PROC)
    stdio = Stdio(None, theirs, theirs)
    node = Subject(loop, starter.launcher, lambda told: ways.start(plan, stdio, pod, told), [theirs])
    with os.fdopen(ours, "rb") as output:
        assert node.until("status").failure is None
        assert output.read() == f"{node.pid}\nsh\n".encode()
