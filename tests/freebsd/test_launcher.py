"""The launcher on FreeBSD: what it does, and what root in a jail can find out about who is on the way there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.sandbox.freebsd import kernel, run_plan
from cri.sandbox.freebsd.launcher import Launcher, open_program
from cri.sandbox.freebsd.run_plan import Run
from cri.sandbox.launcher.client import Kind, receive
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, Operation
from cri.sandbox.launcher.plan import Step
from cri.sandbox.launcher.steps import execute, write
from cri.sandbox.spec import Credentials

from . import observer

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]
EXECS = int(os.environ.get("LAUNCHER_EXECS", "200"))
OUT = FIRST_DESCRIPTOR + 1


class Launch:
    """What became of a plan."""

    def __init__(self, launcher: Launcher, steps: list[Step], descriptors: list[int]) -> None:
        self.sent: list[int] = []
        self.pid, self.failed, self.error = 0, -1, 0
        with launcher.launch(steps, descriptors) as report:
            report.settimeout(60)
            while (received := receive(report)) is not None:
                record, descriptor = received
                if record.kind is Kind.SENT:
                    self.sent.append(descriptor)
                elif record.kind is Kind.BORN:
                    self.pid = record.pid
                else:
                    self.failed, self.error = record.step, record.error

    def output(self, end: int) -> str:
        """What it prints until it ends well."""
        with os.fdopen(end, "rb") as stream:
            text = stream.read().decode()
        assert self.error == 0, (self.failed, os.strerror(self.error))
        assert os.waitpid(self.pid, 0)[1] == 0, text
        return text


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    program = open_program()
    yield Launcher(program)
    os.close(program)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.fixture
def jail() -> Iterator[int]:
    """One whose root is the node's: it has every program."""
    name = f"launch{os.getpid()}"
    jid = kernel.jail_create(
        {"name": name, "path": "/", "persist": True, "allow.unprivileged_proc_debug": True}
    )
    yield jid
    kernel.jail_remove(jid)


def printing(end: int, argv: list[str], env: dict[str, str] | None = None) -> list[Step]:
    return [
        Step(Operation.STREAMS, (-1, OUT, OUT, 0)),
        Step(Operation.FORK),
        execute([argv[0]], argv, env or {}),
    ]


def run_in(jid: int, *argv: str, end: int, **changes: object) -> tuple[list[Step], list[int]]:
    given = {
        "argv": argv,
        "candidates": [argv[0]],
        "env": {"PATH": "/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin"},
        "cwd": "/",
        "credentials": Credentials(0, 0, (0,)),
        "jid": jid,
        "fib": 0,
        "no_new_privileges": False,
        "stdio": (-1, end, end),
    }
    return run_plan.plan(Run(**(given | changes)))


def printed(launcher: Launcher, jid: int, *argv: str, **changes: object) -> str:
    ours, theirs = os.pipe()
    try:
        launch = Launch(launcher, *run_in(jid, *argv, end=theirs, **changes))
    finally:
        os.close(theirs)
    return launch.output(ours)


def test_a_program_runs_and_is_ours_to_reap(launcher: Launcher) -> None:
    ours, theirs = os.pipe()
    launch = Launch(launcher, printing(theirs, ["/bin/sh", "-c", "echo $$ $PPID; procstat -f $$"]), [theirs])
    os.close(theirs)
    lines = launch.output(ours).splitlines()
    assert lines[0].split() == [str(launch.pid), str(os.getpid())]
    numbers = [line.split()[2] for line in lines[2:]]
    assert {number for number in numbers if number.isdigit()} == {"0", "1", "2"}


def test_a_failure_says_which_step(launcher: Launcher) -> None:
    launch = Launch(launcher, [Step(Operation.UMASK, (0o22,)), write("/nowhere/at/all", "0")], [])
    assert (launch.failed, launch.error, launch.pid) == (1, errno.ENOENT, 0)


def test_what_is_no_plan_is_told(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"no plan"):
        monkeypatch.setattr("cri.sandbox.freebsd.launcher.encode", lambda *_, data=data: data)
        launch = Launch(launcher, [], [])
        assert (launch.failed, launch.error) == (-1, errno.EINVAL)


def test_a_plan_may_be_large(launcher: Launcher) -> None:
    environment = {f"NAME{number}": "x" * 1000 for number in range(200)}
    ours, theirs = os.pipe()
    launch = Launch(launcher, printing(theirs, ["/usr/bin/env"], environment), [theirs])
    os.close(theirs)
    assert dict(line.split("=") for line in launch.output(ours).splitlines()) == environment


def test_descriptors_whose_numbers_are_taken(launcher: Launcher) -> None:
    """The warden's may have the very numbers that they are to have in the launcher, in another order."""
    ours, theirs = os.pipe()
    taken = [os.dup2(os.open("/dev/null", os.O_RDONLY), number) for number in range(60, 130)]
    try:
        os.dup2(theirs, FIRST_DESCRIPTOR + 3)
        given = [FIRST_DESCRIPTOR + 2, FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 3]
        steps = [
            Step(Operation.STREAMS, (-1, FIRST_DESCRIPTOR + 3, -1, 0)),
            Step(Operation.FORK),
            execute(["/bin/echo"], ["echo", "here"], {}),
        ]
        launch = Launch(launcher, steps, given)
    finally:
        for number in (*taken, theirs):
            os.close(number)
    assert launch.output(ours) == "here\n"


def test_no_one_has_the_program(launcher: Launcher) -> None:
    """It has no name, and what an upgrade does to the installed file does not matter."""
    assert not list(Path("/var/run").glob("cri-jails-launcher*"))
    program = open_program()
    try:
        assert os.fstat(program).st_nlink == 0
    finally:
        os.close(program)


STATE = """
import ctypes, grp, json, os, resource, signal, subprocess
libc = ctypes.CDLL(None)
def controlled(number):
    value = ctypes.c_int()
    assert libc.procctl(0, ctypes.c_int64(os.getpid()), number, ctypes.byref(value)) == 0
    return value.value
name = ctypes.create_string_buffer(256)
libc.getlogin_r(name, 256)
old = os.umask(0)
print(json.dumps({
    "umask": old,
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_CORE, resource.RLIMIT_CPU)],
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000,
    "ignored": [n for n in signal.valid_signals()
                if n not in (signal.SIGPIPE, 25) and signal.getsignal(n) == signal.SIG_IGN],
    "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "session": os.getsid(0) == os.getpid() == os.getpgid(0),
    "groups": os.getgroups(),
    "login": name.value.decode(),
    "class": subprocess.run(["ps", "-o", "class=", "-p", str(os.getpid())], capture_output=True,
                            text=True).stdout.strip(),
    "cpus": subprocess.run(["cpuset", "-g", "-p", str(os.getpid())], capture_output=True, text=True).stdout
            .split(":")[1].split("\\n")[0].strip(),
    "aslr": controlled(14) & 3,
    "trace": controlled(8),
    "death": controlled(12),
    "environment": dict(os.environ),
}))
"""


def test_what_is_stated_is_what_a_program_gets(launcher: Launcher, jail: int) -> None:
    """Whatever the daemon was started with. It is set up in a fork, which is then the launcher's parent."""
    python = os.path.realpath(sys.executable)
    plain = json.loads(printed(launcher, jail, python, "-c", STATE))
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.nice(7)
            os.umask(0o077)
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, 70, 126):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (1000, 2000))
            os.setgroups([5, 6, 7])
            subprocess.run(["cpuset", "-l", "0", "-p", str(os.getpid())], check=True)
            how = observer.ctypes.c_int(2)  # PROC_ASLR_FORCE_DISABLE
            observer.call("procctl", 0, observer.ctypes.c_int64(os.getpid()), 13, observer.ctypes.byref(how))
            observer.call("setloginclass", b"daemon")
            os.setsid()
            observer.call("setlogin", b"somebody")
            os.write(theirs, printed(launcher, jail, python, "-c", STATE).encode())
        except BaseException as error:
            os.write(theirs, repr(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(pid, 0)
    changed = json.loads(text)
    assert changed == plain
    assert plain == {
        "umask": 0o22,
        "nice": 0,
        "limits": [[resource.RLIM_INFINITY, resource.RLIM_INFINITY]] * 2,
        "files": True,
        "ignored": [],
        "blocked": [],
        "session": True,
        "groups": [0],
        "login": "root",
        "class": "default",
        "cpus": plain["cpus"],
        "aslr": 3,
        "trace": plain["trace"],
        "death": signal.SIGKILL,
        "environment": {"PATH": "/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin"}
        | {key: value for key, value in plain["environment"].items() if key == "LC_CTYPE"},
    }


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[str]:
    """procfs(4)."""
    kernel.mount("procfs", str(tmp_path), {"from": "proc"})
    yield str(tmp_path)
    kernel.unmount(kernel.mount_of(str(tmp_path)))


def test_who_is_on_the_way_is_closed_to_the_jail(
    launcher: Launcher, jail: int, proc: str, directory: Path
) -> None:
    """It waits inside for as long as we want, for a reader of a FIFO, with descriptors of the node that it was given."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    secret = os.open(directory / "secret", os.O_RDWR | os.O_CREAT)
    steps, _ = run_in(jail, "/bin/sleep", "1000", end=-1)
    place = next(number for number, step in enumerate(steps) if step.operation is Operation.JAIL)
    steps = [*steps[: place + 1], write(str(fifo), "x"), *steps[place + 1 :]]
    report = launcher.launch(steps, [secret])
    try:
        received = receive(report)
        assert received is not None
        pid = received[0].pid
        until = time.monotonic() + 20
        while not any(process.pid == pid for process in kernel.processes([jail])):
            assert time.monotonic() < until
            time.sleep(0.01)
        with observer.in_jail(jail, lambda _: observer.look(pid, proc)) as finish:
            seen = finish()
        assert seen.pop("path") == "ENOENT"
        # procfs shows nothing at all to who may not trace.
        assert set(seen.values()) == {"EPERM", "ENOENT"}, seen
        # From outside it is as any other process: the way of looking is a good one.
        outside = observer.look(pid)
        assert outside["descriptors"] == outside["directory"] == outside["trace"] == "done"
        observer.detach(pid)
    finally:
        with contextlib.suppress(OSError):
            os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        report.close()
        os.close(secret)


def test_a_directory_of_the_node_lets_nobody_in(launcher: Launcher, jail: int, directory: Path) -> None:
    """jail_attach(2) refuses it, and the launcher is not told to close what it was given."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        launch = Launch(launcher, run_plan.errand(jail, []), [opened])
    finally:
        os.close(opened)
    assert launch.error == errno.EPERM


def test_errands(launcher: Launcher, jail: int, directory: Path) -> None:
    known, link, fifo = directory / "known", directory / "link", directory / "fifo"
    known.write_text("0123456789")
    link.symlink_to(known)
    os.mkfifo(fifo)
    paths = [str(known), str(link), str(fifo), str(directory), str(directory / "nothing")]
    launch = Launch(launcher, run_plan.errand(jail, run_plan.send_files(paths, 8)), [])
    assert launch.error == 0
    contents = []
    for descriptor in launch.sent:
        with os.fdopen(descriptor, "rb") as copy:
            copy.seek(0)
            contents.append(copy.read())
    assert contents == [b"01234567", b"01234567", b"", b"", b""]

    launch = Launch(launcher, run_plan.errand(jail, run_plan.send_variable("security.jail.jailed", None)), [])
    with os.fdopen(launch.sent[0], "rb") as answer:
        answer.seek(0)
        assert int.from_bytes(answer.read(), sys.byteorder) == 1
    launch = Launch(launcher, run_plan.errand(jail, run_plan.send_variable("kern.maxproc", bytes(4))), [])
    assert launch.error == errno.EPERM
    launch = Launch(launcher, run_plan.errand(jail, run_plan.send_variable("no.such", None)), [])
    assert launch.error == errno.ENOENT

    launch = Launch(
        launcher, run_plan.errand(jail, run_plan.send_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)), []
    )
    with socket.socket(fileno=launch.sent[0]) as made:
        assert (made.family, made.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    launch = Launch(launcher, run_plan.errand(jail, run_plan.send_socket(4711, socket.SOCK_STREAM, 0)), [])
    assert launch.error == errno.EAFNOSUPPORT


def test_a_jail_that_is_gone(launcher: Launcher) -> None:
    launch = Launch(launcher, *run_in(999_999, "/bin/echo", end=-1))
    assert (launch.error, launch.pid > 0) == (errno.EINVAL, True)
    os.waitpid(launch.pid, 0)


def test_whoever_dies_takes_along_what_it_has_started(launcher: Launcher, jail: int) -> None:
    ours, theirs = os.pipe()
    warden = os.fork()
    if warden == 0:
        try:
            launch = Launch(launcher, *run_in(jail, "/bin/sleep", "1000", end=-1))
            os.write(theirs, str(launch.pid).encode())
            signal.pause()
        finally:
            os._exit(0)
    os.close(theirs)
    assert select.select([ours], [], [], 60)[0]
    pid = int(os.read(ours, 32))
    os.close(ours)
    os.kill(warden, signal.SIGKILL)
    os.waitpid(warden, 0)
    until = time.monotonic() + 20
    while any(process.pid == pid for process in kernel.processes([jail])):
        assert time.monotonic() < until
        time.sleep(0.01)


async def test_hundreds_of_execs_under_the_eyes_of_root(machine) -> None:
    container = await machine.container(await machine.pod())
    jid = machine.kernel.jail_find(
        f"cri-{machine.pods.container(container).spec.sandbox_id}.c{container}"
    ).jid
    known = {machine.pods.container(container).record.pid}
    with observer.in_jail(jid, lambda go_on: observer.watch(go_on, known)) as finish:
        for number in range(EXECS):
            assert (await machine.exec(container, "echo", str(number))).stdout == b"%d\n" % number
        seen = finish()
    print(f"\nof {EXECS} execs {seen['launchers']} were seen on the way, {seen['programs']} as programs")
    assert seen["wrong"] == []
    assert seen["launchers"] > EXECS // 20
    assert seen["programs"] > EXECS // 20


async def test_an_exec_takes_no_longer_than_jexec(machine) -> None:
    """jexec(8) is a program more to load, and the daemon and the warden are Python: a ratio of one run, the machine's own speed aside."""
    container = await machine.container(await machine.pod())
    jid = machine.kernel.jail_find(
        f"cri-{machine.pods.container(container).spec.sandbox_id}.c{container}"
    ).jid
    ours, theirs = [], []
    for _ in range(20):
        begun = time.perf_counter()
        await machine.exec(container, "echo")
        between = time.perf_counter()
        await asyncio.to_thread(
            subprocess.run, ["jexec", str(jid), "/bin/echo"], check=True, stdout=subprocess.DEVNULL
        )
        ours.append(between - begun)
        theirs.append(time.perf_counter() - between)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"\nExecSync takes {ratio:.2f} of jexec")
    assert ratio < 1.1
