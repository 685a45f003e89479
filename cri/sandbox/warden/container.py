"""One container, as its warden sees it: a first process, its output on the way to the log, and how it ended."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cri.sandbox import small_files, wire
from cri.sandbox.host import ContainerState, HostError
from cri.sandbox.spec import ContainerSpec, ExitRecord, Started
from cri.sandbox.warden import launching, protocol
from cri.sandbox.warden.attachments import Attachment
from cri.sandbox.warden.driver import Driver, Plan
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Report, Stdio
from cri.sandbox.warden.logs import LogFile
from cri.sandbox.warden.loop import Loop
from cri.sandbox.warden.outputs import Outputs
from cri.sandbox.warden.stdin import PROGRAM_ENDED, Stdin

PLAN_FILE = "spec.json"


def read_plan(directory: str) -> Plan:
    """What the daemon wrote for the warden. Raises HostError."""
    path = Path(directory, PLAN_FILE)
    try:
        data = json.loads(small_files.read(path))
        return Plan(wire.decode(ContainerSpec, data["spec"]), data["host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError("read", str(path), str(error)) from error


def write_plan(plan: Plan) -> None:
    """Write the plan into the container's directory. Blocks. Raises OSError."""
    text = f'{{"spec": {wire.dumps(plan.spec)}, "host": {json.dumps(plan.host)}}}'
    small_files.write(Path(plan.spec.directory, PLAN_FILE), text.encode("ascii"))


class Phase(enum.Enum):
    """Where a container is in its life."""

    STARTING = enum.auto()
    RUNNING = enum.auto()
    EXITED = enum.auto()


class SupervisedContainer:
    """A container from its start to `forget`."""

    def __init__(self, plan: Plan, driver: Driver, loop: Loop, log: int | None = None) -> None:
        """Make all ready for its first process. Raises HostError, with nothing left behind.

        `log` is where its output goes (the caller's to close); without it, the file that the plan names.
        """
        self.plan = plan
        self.id = plan.spec.id
        self.phase = Phase.STARTING
        self.pid = 0
        self.report: Report | None = None
        self.failure: HostError | None = None
        self.started: Started | None = None
        self.exited: ExitRecord | None = None
        self.pty: int | None = None
        self._driver = driver
        self._loop = loop
        self._stdin: Stdin | None = None
        self._given: list[int] = []
        """The ends that are the first process's."""
        self._log = self._open_log(log)
        self.outputs = Outputs(loop, self._log)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._stdio = self._open_streams()
            undo.pop_all()

    def start(self, target: int, started: Callable[[], None], ended: Callable[[int], None]) -> None:
        """Send the first process on its way: `launching.follow`. Raises HostError, with nothing left behind."""
        try:
            way = self._driver.start(self.plan, self._stdio, target, self.reported)
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise HostError("start", f"container {self.id}", reason, error.errno) from error
        given, self._given = self._given, []
        launching.follow(self._loop, self._driver.launcher, way, self, started, ended, given)

    @property
    def is_on_its_way(self) -> bool:
        """Whether there may be something to kill that nobody can find yet."""
        return self.phase is Phase.STARTING and not self.pid

    def born(self, pid: int) -> None:
        """The first process is there, and about to become its program."""
        self.pid = pid

    def reported(self, report: Report) -> None:
        """Take the report over; its terminal comes with it."""
        self.report = report
        if report.pty is not None:
            self.pty = report.pty
            self.outputs.add("stdout", os.dup(report.pty))
            if self.plan.spec.process.stdin:
                self._stdin = self._make_stdin(os.dup(report.pty))

    def running(self) -> None:
        """The program runs."""
        assert self.report is not None
        self.phase = Phase.RUNNING
        self.started = Started(self.pid, time.time_ns(), self.report.credentials)

    def finish(self, status: int) -> None:
        """Record the end of the first process, whose wait status this is: on disk, then in memory."""
        finished_at = time.time_ns()
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 128 + signal if signal else os.waitstatus_to_exitcode(status)
        oom_killed = code != 0 and self._was_oom_killed(signal)
        record = ExitRecord(self.id, code, finished_at, signal, oom_killed)
        try:
            wire.write_exit_record(Path(self.plan.spec.directory), record)
        except OSError as error:
            warn(f"cannot write the exit record of container {self.id}: {error}")
        self.exited = record
        self.phase = Phase.EXITED
        if self._stdin is not None:
            self._stdin.close(PROGRAM_ENDED)

    def _was_oom_killed(self, signal: int) -> bool:
        try:
            return self._driver.oom_killed(self.plan, signal)
        except (HostError, OSError) as error:
            warn(f"why container {self.id} has ended: {error}")
            return False

    def attach(
        self, stdin: int | None, outputs: Mapping[str, int], ended: Callable[[str], None]
    ) -> Attachment:
        """Connect copies of these descriptors; `ended` is called once, with the reason. Raises HostError."""
        if self.phase is not Phase.RUNNING:
            raise HostError("attach to", f"container {self.id}", "it is not running")
        if stdin is None and not outputs:
            raise HostError("attach to", f"container {self.id}", "no stream was asked for")
        if stdin is not None and self._stdin is None:
            raise HostError("attach to stdin of", f"container {self.id}", "it was created without one")
        if stdin is not None and self._stdin is not None and self._stdin.closed:
            raise HostError("attach to stdin of", f"container {self.id}", self._stdin.closed)
        try:
            copies = iter(protocol.duplicate([fd for fd in (stdin, *outputs.values()) if fd is not None]))
            source = None if stdin is None else next(copies)
            ends = dict(zip(outputs, copies, strict=True))
            return self.outputs.attachments.attach(self._stdin, source, ends, ended)
        except OSError as error:
            raise HostError(
                "attach to", f"container {self.id}", error.strerror or str(error), error.errno
            ) from error

    def reopen_log(self, log: int | None) -> None:
        """Go on with another log, or open the plan's anew. Raises HostError."""
        if self._log is None:
            return
        try:
            self._log.reopen(log)
        except OSError as error:
            raise HostError("open", self._log.path, error.strerror or str(error), error.errno) from error

    def state(self) -> ContainerState:
        """What the daemon is told of the container."""
        return ContainerState(self.id, self.started, self.exited)

    def close(self) -> None:
        """Close everything; what is on its way to those who are attached still gets there. May be repeated."""
        self.outputs.close()
        if self._stdin is not None:
            self._stdin.close(PROGRAM_ENDED)
        if self.pty is not None:
            os.close(self.pty)
            self.pty = None
        given, self._given = self._given, []
        protocol.close_all(given)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _open_log(self, given: int | None) -> LogFile | None:
        path = self.plan.spec.log_path
        if not path:
            return None
        try:
            return LogFile(path, given)
        except OSError as error:
            raise HostError("open", path, error.strerror or str(error), error.errno) from error

    def _make_stdin(self, fd: int) -> Stdin:
        process = self.plan.spec.process
        name = f"stdin of container {self.id}"
        return Stdin(self._loop, fd, once=process.stdin_once, terminal=process.tty, name=name)

    def _open_streams(self) -> Stdio:
        process = self.plan.spec.process
        if process.tty:
            return Stdio(tty=True)
        try:
            stdin = None
            if process.stdin:
                stdin, ours = os.pipe()
                self._given.append(stdin)
                self._stdin = self._make_stdin(ours)
            for name in ("stdout", "stderr"):
                ours, theirs = os.pipe()
                self._given.append(theirs)
                self.outputs.add(name, ours)
        except OSError as error:
            reason = error.strerror or str(error)
            raise HostError("start", f"container {self.id}", reason, error.errno) from error
        return Stdio(stdin, self._given[-2], self._given[-1])
