"""What a warden does: containers and execs on request, exits recorded and told.

Nothing here waits for anything but the loop: starts and execs are answered when the child has reported, and kills
that do not work at once are repeated by timer. A request that fails is answered with its error, and never ends the
warden. Signals that would end it are ignored: `shutdown` is the only way.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from cri.sandbox import wire
from cri.sandbox.host import HostError
from cri.sandbox.spec import ProcessSpec, SandboxSpec
from cri.sandbox.warden import launch, protocol
from cri.sandbox.warden.container import Output, Phase, SupervisedContainer, read_plan
from cri.sandbox.warden.driver import Driver, Target
from cri.sandbox.warden.launch import Child, Report, Stdio
from cri.sandbox.warden.loop import READ, Loop
from cri.sandbox.warden.server import Connection, Server

SOCKET_NAME = "warden.sock"
_SIGNAL_INTERVAL = 0.005
_SIGNAL_INTERVAL_MAX = 0.5
_KILL_INTERVAL = 0.01
_KILL_SECONDS = 10.0
_DRAIN_SECONDS = 2.0
"""How long the output of an ended container is still read, if something holds its pipe."""

Answer = Callable[..., None]


def socket_path(spec: SandboxSpec) -> str:
    """Where the warden of a sandbox listens. Raises ValueError for a path that is too long."""
    return protocol.check_path(f"{spec.runtime_directory}/{SOCKET_NAME}")


@dataclass(eq=False)
class SupervisedExec:
    """A process beside a container's own."""

    name: str
    container: SupervisedContainer
    connection: Connection
    child: Child
    answer: Answer | None
    report: Report | None = None
    failure: HostError | None = None
    ended: bool = False


class Supervisor:
    """One sandbox's warden."""

    def __init__(self, spec: SandboxSpec, driver: Driver) -> None:
        self._spec = spec
        self._driver = driver
        self._loop = Loop()
        self._server = Server(
            self._loop,
            {"hello": spec.id, "pid": os.getpid(), "version": protocol.VERSION},
            self._handle,
            self._left,
        )
        self._containers: dict[str, SupervisedContainer] = {}
        self._starting: dict[str, Answer] = {}
        self._execs: dict[str, SupervisedExec] = {}
        self._exec_numbers = itertools.count(1)
        self._path = ""
        self._claimed = False
        self._ending = False

    def run(self, channel: socket.socket) -> None:
        """Supervise until told to shut down. `channel` leads to the daemon that asked for this warden."""
        self._loop.catch_signals()
        try:
            self._path = socket_path(self._spec)
            self._server.announced.extend(self._driver.enter(self._spec))
            self._server.listen(self._path)
        except Exception as error:  # noqa: BLE001  # whatever it is, the daemon must hear of it
            failure = _as_host_error("create sandbox", self._spec.id, error)
            protocol.send(channel, {"error": launch.pack_error(failure)})
            return
        self._server.connect(channel)
        while not (self._ending and self._server.is_idle()):
            self._loop.turn()
        self._driver.close()

    def _handle(self, connection: Connection, message: protocol.Message, descriptors: list[int]) -> None:
        number = message.get("id")

        def answer(
            result: object = None, *, error: HostError | None = None, descriptors: tuple[int, ...] = ()
        ) -> None:
            outcome = {"ok": result} if error is None else {"error": launch.pack_error(error)}
            self._server.post(connection, {"id": number, **outcome}, list(descriptors))

        operation = message.get("op")
        try:
            handler = _HANDLERS.get(operation) if isinstance(operation, str) else None
            if handler is None:
                answer(error=HostError("understand", f"request {operation!r}", "there is no such operation"))
            else:
                handler(self, connection, message, descriptors, answer)
        except HostError as error:
            answer(error=error)
        except Exception as error:  # noqa: BLE001  # a bad request must not end the warden
            answer(error=_as_host_error("handle", f"request {operation!r}", error))

    # Reports of children

    def _watch(
        self,
        subject: SupervisedContainer | SupervisedExec,
        child: Child,
        reported: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        """Call `reported` when the child's program runs or has failed to; then, at its end, `ended` with its wait status."""

        def advance(_: int = 0) -> None:
            while (more := self._read_report(subject, child)) is True:
                pass
            if more is False:
                finish()

        def finish() -> None:
            self._loop.unwatch(child.report)
            child.report.close()
            if subject.report is None and subject.failure is None:
                subject.failure = HostError("start", "the process", "it ended before its program ran")
            reported()

        def reaped(status: int) -> None:
            if child.report.fileno() >= 0:  # the end may be known before the report was read
                advance()
            if child.report.fileno() >= 0:
                finish()
            ended(status)

        self._loop.watch(child.report, READ, advance)
        self._loop.children[child.pid] = reaped

    def _read_report(self, subject: SupervisedContainer | SupervisedExec, child: Child) -> bool | None:
        """Read a message of a report. False at its end, None if nothing is there yet."""
        try:
            received = protocol.receive(child.report)
        except BlockingIOError:
            return None
        except (OSError, protocol.ProtocolError):
            return False
        if received is None:
            return False
        try:
            report = launch.read_report(*received)
        except HostError as error:
            subject.failure = error
            return True
        if isinstance(subject, SupervisedContainer):
            subject.reported(report)
            self._watch_outputs(subject)
        else:
            subject.report = report
        return True

    # Containers

    def _container(self, message: protocol.Message) -> SupervisedContainer:
        container = self._containers.get(message["container"])
        if container is None:
            raise HostError("find", f"container {message['container']}", "this warden has not started it")
        return container

    def _start(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        plan = read_plan(message["directory"])
        if plan.spec.id in self._containers:
            raise HostError("start", f"container {plan.spec.id}", "it has been started already")
        target = 0
        if plan.spec.namespaces.target_id:
            other = self._containers.get(plan.spec.namespaces.target_id)
            if other is None or other.phase is not Phase.RUNNING:
                raise HostError(
                    "share processes with", f"container {plan.spec.namespaces.target_id}", "it is not running"
                )
            target = other.pid
        container = SupervisedContainer(plan, self._driver, target)
        self._containers[container.id] = container
        self._starting[container.id] = answer
        self._watch_outputs(container)
        self._watch(
            container,
            container.child,
            lambda: self._started(container),
            lambda status: self._ended(container, status),
        )

    def _started(self, container: SupervisedContainer) -> None:
        answer = self._starting.pop(container.id)
        if container.failure is None:
            container.running()
            answer(wire.encode(container.started))
            return
        del self._containers[container.id]
        for output in container.outputs:
            self._loop.unwatch(output.fd)
        container.close()
        answer(error=container.failure)

    def _ended(self, container: SupervisedContainer, status: int) -> None:
        container.pid = 0  # reaped: the number may be another's from now on
        if container.phase is not Phase.RUNNING:
            return
        for output in container.close_outputs():
            self._loop.unwatch(output.fd)
        # What has left the container's processes behind (a shared process namespace) ends with it.
        self._kill_until_empty(container, time.monotonic() + _KILL_SECONDS)
        container.finish(status)
        self._loop.later(_DRAIN_SECONDS, lambda: self._drop_outputs(container))
        self._server.broadcast({"event": "exit", "record": wire.encode(container.exited)})

    def _watch_outputs(self, container: SupervisedContainer) -> None:
        for output in container.outputs:
            self._loop.watch(output.fd, READ, self._pump(container, output))

    def _pump(self, container: SupervisedContainer, output: Output) -> Callable[[int], None]:
        def pump(_: int) -> None:
            if output in container.outputs and not output.pump():
                self._loop.unwatch(output.fd)
                container.drop(output)

        return pump

    def _drop_outputs(self, container: SupervisedContainer) -> None:
        for output in container.outputs:
            self._loop.unwatch(output.fd)
        container.close()

    def _kill_until_empty(self, container: SupervisedContainer, until: float) -> None:
        """KILL everything, again and again: a process may fork while it is killed."""
        if not self._driver.kill(container.plan, container.pid) and time.monotonic() < until:
            self._loop.later(_KILL_INTERVAL, lambda: self._kill_until_empty(container, until))

    def _signal(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        container = self._container(message)
        self._signal_until_heard(container, message["signal"], 0)
        answer()

    def _signal_until_heard(self, container: SupervisedContainer, number: int, waited: float) -> None:
        """A signal to a program that is not ready for it yet is sent again once it is: a stop may follow right on a start."""
        if not container.pid:
            return
        if not self._driver.signal(container.plan, container.pid, number, again=waited > 0):
            pause = min(max(waited * 2, _SIGNAL_INTERVAL), _SIGNAL_INTERVAL_MAX)
            self._loop.later(pause, lambda: self._signal_until_heard(container, number, pause))

    def _kill(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        self._kill_until_empty(self._container(message), time.monotonic() + _KILL_SECONDS)
        answer()

    def _reopen_log(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        self._container(message).reopen_log()
        answer()

    def _forget(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        container = self._containers.get(message["container"])
        if container is not None:
            if container.phase is not Phase.EXITED:
                raise HostError("forget", f"container {container.id}", "it is running")
            self._drop_outputs(container)
            del self._containers[container.id]
        answer()

    def _list(self, _: Connection, __: protocol.Message, ___: list[int], answer: Answer) -> None:
        known = [one.state() for one in self._containers.values() if one.phase is not Phase.STARTING]
        answer([wire.encode(state) for state in known])

    # Processes beside containers

    def _exec(
        self, connection: Connection, message: protocol.Message, descriptors: list[int], answer: Answer
    ) -> None:
        container = self._container(message)
        if container.phase is not Phase.RUNNING or container.report is None:
            raise HostError("exec in", f"container {container.id}", "it is not running")
        process = wire.decode(ProcessSpec, message["process"])
        given = iter(descriptors)
        stdin, stdout, stderr = (next(given) if there else None for there in message["stdio"])
        stdio = Stdio(stdin, stdout, stderr, tty=process.tty)
        name = f"exec-{next(self._exec_numbers)}"
        try:
            child = self._driver.exec(
                Target(container.plan, container.pid, container.report), process, stdio, name
            )
        except (HostError, OSError):
            self._driver.end_exec(container.plan, name)
            raise
        running = SupervisedExec(name, container, connection, child, answer)
        self._execs[name] = running
        self._watch(
            running,
            child,
            lambda: self._exec_started(running),
            lambda status: self._exec_ended(running, status),
        )

    def _exec_started(self, process: SupervisedExec) -> None:
        answer, process.answer = process.answer, None
        assert answer is not None
        pty = None if process.report is None else process.report.pty
        if process.failure is not None:
            answer(error=process.failure)
        else:
            answer(
                {"exec": process.name, "pid": process.child.pid},
                descriptors=() if pty is None else (pty,),
            )
        if pty is not None:
            os.close(pty)

    def _exec_ended(self, process: SupervisedExec, status: int) -> None:
        process.ended = True
        del self._execs[process.name]
        self._driver.end_exec(process.container.plan, process.name)
        if process.failure is None:
            code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
            self._server.post(process.connection, {"event": "exec_exit", "exec": process.name, "code": code})

    def _left(self, connection: Connection) -> None:
        """A daemon has gone, and with it those who wait for its execs; and the sandbox, if it was made in vain."""
        if not self._claimed:
            self._end()
        for process in list(self._execs.values()):
            if process.connection is connection:
                self._abandon(process)

    def _abandon(self, process: SupervisedExec) -> None:
        self._driver.kill_exec(process.container.plan, process.child.pid, process.name)

    def _exec_kill(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        process = self._execs.get(message["exec"])
        if process is not None:
            self._abandon(process)
        answer()

    # The sandbox

    def _socket(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        with self._driver.make_socket(message["family"], message["type"], message["protocol"]) as made:
            answer(descriptors=(made.fileno(),))

    def _sysctl(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        answer(self._driver.sysctl(message["name"], message["value"]))

    def _shutdown(self, _: Connection, __: protocol.Message, ___: list[int], answer: Answer) -> None:
        self._shut_down(answer, time.monotonic() + _KILL_SECONDS)

    def _shut_down(self, answer: Answer, until: float) -> None:
        for process in self._execs.values():
            self._abandon(process)
        emptied = [
            self._driver.kill(container.plan, container.pid)
            for container in self._containers.values()
            if container.phase is not Phase.EXITED or time.monotonic() < until
        ]
        if (self._loop.children or not all(emptied)) and time.monotonic() < until:
            self._loop.later(_KILL_INTERVAL / 5, lambda: self._shut_down(answer, until))
            return
        if self._loop.children:
            pids = ", ".join(map(str, self._loop.children))
            answer(error=HostError("end", f"sandbox {self._spec.id}", f"processes {pids} cannot be killed"))
            return
        self._end()
        answer()

    def _claim(self, _: Connection, __: protocol.Message, ___: list[int], answer: Answer) -> None:
        self._claimed = True
        answer()

    def _end(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108
        self._ending = True


Handler = Callable[[Supervisor, Connection, protocol.Message, list[int], Answer], None]
_HANDLERS: dict[str, Handler] = {
    "claim": Supervisor._claim,  # noqa: SLF001
    "start": Supervisor._start,  # noqa: SLF001
    "signal": Supervisor._signal,  # noqa: SLF001
    "kill": Supervisor._kill,  # noqa: SLF001
    "reopen_log": Supervisor._reopen_log,  # noqa: SLF001
    "forget": Supervisor._forget,  # noqa: SLF001
    "containers": Supervisor._list,  # noqa: SLF001
    "exec": Supervisor._exec,  # noqa: SLF001
    "exec_kill": Supervisor._exec_kill,  # noqa: SLF001
    "socket": Supervisor._socket,  # noqa: SLF001
    "sysctl": Supervisor._sysctl,  # noqa: SLF001
    "shutdown": Supervisor._shutdown,  # noqa: SLF001
}


def _as_host_error(operation: str, subject: str, error: Exception) -> HostError:
    if isinstance(error, HostError):
        return error
    if isinstance(error, OSError):
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        return HostError(operation, subject, reason, error.errno)
    return HostError(operation, subject, f"{type(error).__name__}: {error}")
