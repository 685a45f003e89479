"""One container, as its warden sees it: a first process, its output on the way to the log, and how it ended."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import time
from pathlib import Path

from cri.sandbox import wire
from cri.sandbox.host import ContainerState, HostError
from cri.sandbox.spec import ContainerSpec, ExitRecord, Started
from cri.sandbox.warden.driver import Driver, Plan
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Child, Report, Stdio
from cri.sandbox.warden.logs import Framer, LogFile

PLAN_FILE = "spec.json"
_READ = 64 * 1024
_DRAIN_AT_EXIT = 64
"""Reads per stream at exit: a background process that writes without end must not hold the exit back."""


def read_plan(directory: str) -> Plan:
    """What the daemon wrote for the warden. Raises HostError."""
    path = Path(directory, PLAN_FILE)
    try:
        data = json.loads(path.read_bytes())
        return Plan(wire.decode(ContainerSpec, data["spec"]), data["host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError("read", str(path), str(error)) from error


def write_plan(plan: Plan) -> None:
    """Write the plan into the container's directory. Blocks."""
    path = Path(plan.spec.directory, PLAN_FILE)
    path.write_text(json.dumps({"spec": wire.encode(plan.spec), "host": plan.host}))


class Phase(enum.Enum):
    """Where a container is in its life."""

    STARTING = enum.auto()
    RUNNING = enum.auto()
    EXITED = enum.auto()


class Output:
    """One stream of a container on its way to the log."""

    def __init__(self, name: str, fd: int, log: LogFile | None) -> None:
        self.fd = fd
        self._framer = Framer(name)
        self._log = log
        os.set_blocking(fd, False)

    def pump(self) -> bool:
        """Take over what is there. False at the end of the stream."""
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return True
        except OSError:
            data = b""  # EIO: the last process has closed the terminal
        if self._log is not None and data:
            self._log.write(self._framer.feed(data, time.time_ns()))
        return bool(data)

    def drain(self) -> bool:
        """Take over what was written so far, in bounded time. False at the end of the stream."""
        for _ in range(_DRAIN_AT_EXIT):
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            if self._log is not None:
                self._log.write(self._framer.feed(data, time.time_ns()))
        return True

    def close(self) -> None:
        """Close the stream; a last line without an end goes to the log."""
        if self._log is not None:
            self._log.write(self._framer.flush(time.time_ns()))
        os.close(self.fd)


class SupervisedContainer:
    """A container from its fork to `forget`."""

    def __init__(self, plan: Plan, driver: Driver, target: int) -> None:
        """Fork the first process. Raises HostError, with nothing left behind."""
        self.plan = plan
        self.id = plan.spec.id
        self.phase = Phase.STARTING
        self.report: Report | None = None
        self.failure: HostError | None = None
        self.started: Started | None = None
        self.exited: ExitRecord | None = None
        self.outputs: list[Output] = []
        self.stdin: int | None = None
        """Our end of the container's stdin. Kept open so that the container sees no end of it before somebody attaches."""
        self.pty: int | None = None
        self._driver = driver
        self._log = self._open_log()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.child = self._fork(target)
            undo.pop_all()
        self.pid = self.child.pid

    def reported(self, report: Report) -> None:
        """Take the child's report over; its terminal comes with it."""
        self.report = report
        if report.pty is not None:
            self.pty = report.pty
            self.outputs.append(Output("stdout", os.dup(report.pty), self._log))

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
        oom_killed = code != 0 and self._driver.oom_killed(self.plan, signal)
        record = ExitRecord(self.id, code, finished_at, signal, oom_killed)
        try:
            wire.write_exit_record(Path(self.plan.spec.directory), record)
        except OSError as error:
            warn(f"cannot write the exit record of container {self.id}: {error}")
        self.exited = record
        self.phase = Phase.EXITED

    def close_outputs(self) -> list[Output]:
        """Read what is there; close the streams that have ended, and return them."""
        ended = [output for output in self.outputs if not output.drain()]
        for output in ended:
            self.drop(output)
        return ended

    def drop(self, output: Output) -> None:
        """Close one stream."""
        self.outputs.remove(output)
        output.close()

    def reopen_log(self) -> None:
        """Open the log anew. Raises HostError."""
        if self._log is None:
            return
        try:
            self._log.reopen()
        except OSError as error:
            raise HostError("open", self._log.path, error.strerror or str(error), error.errno) from error

    def state(self) -> ContainerState:
        """What the daemon is told of the container."""
        return ContainerState(self.id, self.started, self.exited)

    def close(self) -> None:
        """Close everything."""
        for output in list(self.outputs):
            self.drop(output)
        for fd in (self.stdin, self.pty):
            if fd is not None:
                os.close(fd)
        self.stdin = self.pty = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _open_log(self) -> LogFile | None:
        path = self.plan.spec.log_path
        if not path:
            return None
        try:
            return LogFile(path)
        except OSError as error:
            raise HostError("open", path, error.strerror or str(error), error.errno) from error

    def _fork(self, target: int) -> Child:
        process = self.plan.spec.process
        if process.tty:
            return self._driver.start(self.plan, Stdio(tty=True), target)
        theirs: list[int] = []
        try:
            stdin = None
            if process.stdin:
                stdin, self.stdin = os.pipe()
                theirs.append(stdin)
            for name in ("stdout", "stderr"):
                ours, end = os.pipe()
                theirs.append(end)
                self.outputs.append(Output(name, ours, self._log))
            stdout, stderr = theirs[-2:]
            return self._driver.start(self.plan, Stdio(stdin, stdout, stderr), target)
        except OSError as error:
            raise HostError(
                "fork", f"container {self.id}", error.strerror or str(error), error.errno
            ) from error
        finally:
            for fd in theirs:
                os.close(fd)
