"""The processes that a warden runs beside its containers' own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cri.sandbox import wire
from cri.sandbox.host import HostError
from cri.sandbox.spec import ProcessSpec
from cri.sandbox.warden import launching
from cri.sandbox.warden.container import Phase, SupervisedContainer
from cri.sandbox.warden.driver import Driver, Target
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Report, Stdio
from cri.sandbox.warden.loop import Loop
from cri.sandbox.warden.protocol import Message
from cri.sandbox.warden.server import Answer, Connection, Server, given_streams

_PAUSES = (0.01, 0.1, 1.0)
"""Seconds, after which what an exec has had is given back once more; what it has started may have it for longer."""


@dataclass(eq=False)
class SupervisedExec:
    """A process beside a container's own."""

    name: str
    container: SupervisedContainer
    connection: Connection
    answer: Answer
    driver: Driver
    pid: int = 0
    """0 while it is on its way."""
    report: Report | None = None
    failure: HostError | None = None
    killed: bool = False

    def reported(self, report: Report) -> None:
        """Take the report over; its terminal comes with it."""
        self.report = report

    def born(self, pid: int) -> None:
        """It is there, and about to become its program; it ends at once if it was killed on its way."""
        self.pid = pid
        if self.killed:
            self.kill_if_possible()

    def kill(self) -> None:
        """KILL it, and what it has started. Raises HostError or OSError."""
        self.killed = True
        self.driver.kill_exec(self.container.plan, self.pid, self.name)

    def kill_if_possible(self) -> None:
        """The same; what fails is told to the operator."""
        try:
            self.kill()
        except (HostError, OSError) as error:  # the others are to be killed all the same
            warn(f"kill {self.name} of container {self.container.id}: {error}")


class Execs:
    """All of a sandbox. An exec is answered when it has started, and its end is told to the daemon that asked for it."""

    def __init__(self, driver: Driver, loop: Loop, server: Server) -> None:
        self._driver = driver
        self._loop = loop
        self._server = server
        self._execs: dict[str, SupervisedExec] = {}
        self._numbers = itertools.count(1)

    def start(
        self,
        container: SupervisedContainer,
        connection: Connection,
        message: Message,
        descriptors: list[int],
        answer: Answer,
    ) -> None:
        """Send a process on its way into a container; the descriptors are the way's. Raises HostError or OSError."""
        if container.phase is not Phase.RUNNING or container.report is None:
            raise HostError("exec in", f"container {container.id}", "it is not running")
        process = wire.decode(ProcessSpec, message["process"])
        stdio = Stdio(**given_streams(message, descriptors), tty=process.tty)
        name = f"exec-{next(self._numbers)}"
        # Who it runs as is the container's, but not the terminal: that is not an exec's to report.
        target = Target(container.plan, container.pid, replace(container.report, pty=None))
        running = SupervisedExec(name, container, connection, answer, self._driver)
        way = self._driver.exec(target, process, stdio, name, running.reported)
        self._execs[name] = running
        kept, descriptors[:] = list(descriptors), []
        launching.follow(
            self._loop,
            self._driver.launcher,
            way,
            running,
            lambda: self._started(running),
            lambda status: self._ended(running, status),
            kept,
        )

    def kill(self, name: str) -> None:
        """KILL an exec, and what it has started; succeeds on what has ended."""
        if (process := self._execs.get(name)) is not None:
            process.kill()

    def kill_those_of(self, connection: Connection) -> None:
        """KILL what a daemon that has gone had asked for."""
        for process in list(self._execs.values()):
            if process.connection is connection:
                process.kill_if_possible()

    def kill_all(self) -> None:
        """KILL every exec."""
        for process in self._execs.values():
            process.kill_if_possible()

    def _started(self, process: SupervisedExec) -> None:
        pty = None if process.report is None else process.report.pty
        try:
            if process.failure is None:
                process.answer(
                    {"exec": process.name, "pid": process.pid},
                    descriptors=() if pty is None else (pty,),
                )
        except OSError as error:  # nobody would learn of it
            reason = f"its terminal cannot be passed on: {error.strerror}"
            process.failure = HostError("exec in", f"container {process.container.id}", reason, error.errno)
            process.kill_if_possible()
        finally:
            if pty is not None:
                os.close(pty)
        if process.failure is not None:
            process.answer(error=process.failure)
        if not process.pid:
            self._forget(process)

    def _ended(self, process: SupervisedExec, status: int) -> None:
        if process.failure is None:
            code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
            self._server.post(process.connection, {"event": "exec_exit", "exec": process.name, "code": code})
        self._forget(process)

    def _forget(self, process: SupervisedExec) -> None:
        del self._execs[process.name]
        self._give_back(process, _PAUSES)

    def _give_back(self, process: SupervisedExec, pauses: Sequence[float]) -> None:
        if not self._driver.end_exec(process.container.plan, process.name) and pauses:
            self._loop.later(pauses[0], lambda: self._give_back(process, pauses[1:]))
