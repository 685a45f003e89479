"""The warden's main loop: one thread, one selector; requests in, answers and events out.

Nothing here waits for anything but the selector: starts and execs are answered when the child has reported, and kills
that do not work at once are repeated by timer. A request that fails is answered with its error, and never ends the
warden. Signals that would end it are ignored: `shutdown` is the only way.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cri.sandbox import wire
from cri.sandbox.host import HostError
from cri.sandbox.spec import ProcessSpec, SandboxSpec
from cri.sandbox.warden import launch, protocol
from cri.sandbox.warden.container import Output, Phase, SupervisedContainer, read_plan
from cri.sandbox.warden.driver import Driver
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Child, Report, Stdio

SOCKET_NAME = "warden.sock"
_MAX_OUTBOX = 10_000
_KILL_INTERVAL = 0.01
_KILL_SECONDS = 10.0
_DRAIN_SECONDS = 2.0
"""How long the output of an ended container is still read, if something holds its pipe."""

Answer = Callable[..., None]


def socket_path(spec: SandboxSpec) -> str:
    """Where the warden of a sandbox listens. Raises ValueError for a path that is too long."""
    return protocol.check_path(f"{spec.runtime_directory}/{SOCKET_NAME}")


@dataclass(eq=False)
class Connection:
    """A daemon at the other end."""

    channel: socket.socket
    outbox: deque[tuple[protocol.Message, list[int]]] = field(default_factory=deque)


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
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._containers: dict[str, SupervisedContainer] = {}
        self._starting: dict[str, Answer] = {}
        self._execs: dict[str, SupervisedExec] = {}
        self._exec_numbers = itertools.count(1)
        self._children: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._announced: list[int] = []
        self._path = ""
        self._ending = False

    def run(self, channel: socket.socket) -> None:
        """Supervise until told to shut down. `channel` leads to the daemon that asked for this warden."""
        self._catch_signals()
        try:
            self._path = socket_path(self._spec)
            self._announced = list(self._driver.enter(self._spec))
            self._listen()
        except Exception as error:  # noqa: BLE001  # whatever it is, the daemon must hear of it
            protocol.send(channel, {"error": launch.pack_error(_as_host_error("create sandbox", self._spec.id, error))})
            return
        self._connect(channel)
        while not self._ending or any(connection.outbox for connection in self._connections):
            for key, events in self._selector.select(self._next_timer()):
                # An earlier callback of this round may have closed it, and its number may be in use again.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(key.data, events)
            self._run_timers()
        self._driver.close()

    # Loop

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, nothing would be written to `wake`
        self._selector.register(woken, selectors.EVENT_READ, lambda _: self._reap(woken))

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.unlink(self._path)  # noqa: PTH108
        except FileNotFoundError:
            pass
        mask = os.umask(0o177)
        try:
            listener.bind(self._path)
        finally:
            os.umask(mask)
        listener.listen(8)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            channel, _ = listener.accept()
        except OSError as error:
            warn(f"sandbox {self._spec.id}: accept: {error}")
            return
        if protocol.peer_uid(channel) != os.geteuid():
            channel.close()
            return
        self._connect(channel)

    def _connect(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        connection = Connection(channel)
        self._connections.append(connection)
        self._selector.register(channel, selectors.EVENT_READ, lambda events: self._serve(connection, events))
        self._post(connection, {"hello": self._spec.id, "pid": os.getpid()}, self._announced)

    def _disconnect(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._selector.unregister(connection.channel)
        connection.channel.close()
        for _, descriptors in connection.outbox:
            protocol.close_all(descriptors)
        connection.outbox.clear()
        for process in list(self._execs.values()):
            if process.connection is connection:
                self._abandon(process)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if not events & selectors.EVENT_READ or connection not in self._connections:
            return
        try:
            received = protocol.receive(connection.channel)
        except BlockingIOError:
            return
        except OSError:
            received = None
        except protocol.ProtocolError as error:
            failure = HostError("understand", "message", str(error))
            self._post(connection, {"id": None, "error": launch.pack_error(failure)})
            return
        if received is None:
            self._disconnect(connection)
            return
        message, descriptors = received
        try:
            self._handle(connection, message, descriptors)
        finally:
            protocol.close_all(descriptors)

    def _handle(self, connection: Connection, message: protocol.Message, descriptors: list[int]) -> None:
        number = message.get("id")

        def answer(
            result: object = None, *, error: HostError | None = None, descriptors: tuple[int, ...] = ()
        ) -> None:
            outcome = {"ok": result} if error is None else {"error": launch.pack_error(error)}
            self._post(connection, {"id": number, **outcome}, list(descriptors))

        operation = message.get("op")
        try:
            handler = _HANDLERS.get(operation) if isinstance(operation, str) else None
            if handler is None:
                raise HostError("understand", f"request {operation!r}", "there is no such operation")
            handler(self, connection, message, descriptors, answer)
        except HostError as error:
            answer(error=error)
        except Exception as error:  # noqa: BLE001  # a bad request must not end the warden
            answer(error=_as_host_error("handle", f"request {operation!r}", error))

    def _post(self, connection: Connection, message: protocol.Message, descriptors: list[int] | None = None) -> None:
        if connection not in self._connections:
            return
        connection.outbox.append((message, [os.dup(fd) for fd in descriptors or ()]))
        self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        while connection.outbox:
            message, descriptors = connection.outbox[0]
            try:
                protocol.send(connection.channel, message, descriptors)
            except BlockingIOError:
                break
            except OSError:
                self._disconnect(connection)
                return
            connection.outbox.popleft()
            protocol.close_all(descriptors)
        if len(connection.outbox) > _MAX_OUTBOX:
            self._disconnect(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outbox else 0)
        key = self._selector.get_key(connection.channel)
        if key.events != events:
            self._selector.modify(connection.channel, events, key.data)

    def _broadcast(self, message: protocol.Message) -> None:
        for connection in list(self._connections):
            self._post(connection, message)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), action))

    def _next_timer(self) -> float | None:
        return max(self._timers[0][0] - time.monotonic(), 0) if self._timers else None

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._call(heapq.heappop(self._timers)[2])

    def _call(self, action: Callable[..., None], *arguments: object) -> None:
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001  # a pod must not end because its warden has a flaw
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else "?"
            warn(f"sandbox {self._spec.id}: {type(error).__name__}: {error} ({line})")

    def _reap(self, woken: socket.socket) -> None:
        try:
            woken.recv(4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._children.pop(pid, None)
            if ended is not None:  # else an orphan that a container left to us
                self._call(ended, status)

    # Reports of children

    def _watch(
        self,
        subject: SupervisedContainer | SupervisedExec,
        reported: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        """Call `reported` when the child's program runs or has failed to; then, at its end, `ended` with its wait status."""
        child = subject.child

        def advance(_: int = 0) -> None:
            while (more := self._read_report(subject)) is True:
                pass
            if more is False:
                finish()

        def finish() -> None:
            self._selector.unregister(child.report)
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

        self._selector.register(child.report, selectors.EVENT_READ, advance)
        self._children[child.pid] = reaped

    def _read_report(self, subject: SupervisedContainer | SupervisedExec) -> bool | None:
        """Read a message of a report. False at its end, None if nothing is there yet."""
        try:
            received = protocol.receive(subject.child.report)
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

    def _start(
        self, _: Connection, message: protocol.Message, __: list[int], answer: Answer
    ) -> None:
        plan = read_plan(message["directory"])
        if plan.spec.id in self._containers:
            raise HostError("start", f"container {plan.spec.id}", "it has been started already")
        target = 0
        if plan.spec.namespaces.target_id:
            other = self._containers.get(plan.spec.namespaces.target_id)
            if other is None or other.phase is not Phase.RUNNING:
                raise HostError("share processes with", f"container {plan.spec.namespaces.target_id}", "it is not running")
            target = other.pid
        container = SupervisedContainer(plan, self._driver, target)
        self._containers[container.id] = container
        self._starting[container.id] = answer
        self._watch_outputs(container)
        self._watch(container, lambda: self._started(container), lambda status: self._ended(container, status))

    def _started(self, container: SupervisedContainer) -> None:
        answer = self._starting.pop(container.id)
        if container.failure is None:
            container.running()
            answer(wire.encode(container.started))
            return
        del self._containers[container.id]
        for output in container.outputs:
            self._selector.unregister(output.fd)
        container.close()
        answer(error=container.failure)

    def _ended(self, container: SupervisedContainer, status: int) -> None:
        container.pid = 0  # reaped: the number may be another's from now on
        if container.phase is not Phase.RUNNING:
            return
        for output in container.close_outputs():
            self._selector.unregister(output.fd)
        # What has left the container's processes behind (a shared process namespace) ends with it.
        self._kill_until_empty(container, time.monotonic() + _KILL_SECONDS)
        container.finish(status)
        self._later(_DRAIN_SECONDS, lambda: self._drop_outputs(container))
        self._broadcast({"event": "exit", "record": wire.encode(container.exited)})

    def _watch_outputs(self, container: SupervisedContainer) -> None:
        for output in container.outputs:
            if output.fd not in self._selector.get_map():
                self._selector.register(output.fd, selectors.EVENT_READ, self._pump(container, output))

    def _pump(self, container: SupervisedContainer, output: Output) -> Callable[[int], None]:
        def pump(_: int) -> None:
            if output in container.outputs and not output.pump():
                self._selector.unregister(output.fd)
                container.drop(output)

        return pump

    def _drop_outputs(self, container: SupervisedContainer) -> None:
        for output in container.outputs:
            self._selector.unregister(output.fd)
        container.close()

    def _kill_until_empty(self, container: SupervisedContainer, until: float) -> None:
        """KILL everything, again and again: a process may fork while it is killed."""
        if not self._driver.kill(container.plan, container.pid) and time.monotonic() < until:
            self._later(_KILL_INTERVAL, lambda: self._kill_until_empty(container, until))

    def _signal(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        container = self._container(message)
        if container.phase is not Phase.EXITED:
            os.kill(container.pid, message["signal"])
        answer()

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
        stdio = Stdio(*(next(given) if there else None for there in message["stdio"]), tty=process.tty)
        name = f"exec-{next(self._exec_numbers)}"
        child = self._driver.exec(
            container.plan, container.pid, process, container.report.credentials, stdio, name
        )
        running = SupervisedExec(name, container, connection, child, answer)
        self._execs[name] = running
        self._watch(running, lambda: self._exec_started(running), lambda status: self._exec_ended(running, status))

    def _exec_started(self, process: SupervisedExec) -> None:
        answer, process.answer = process.answer, None
        assert answer is not None
        if process.failure is not None:
            answer(error=process.failure)
            return
        assert process.report is not None
        pty = process.report.pty
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
            self._post(process.connection, {"event": "exec_exit", "exec": process.name, "code": code})

    def _abandon(self, process: SupervisedExec) -> None:
        self._driver.kill_exec(process.container.plan, process.child.pid, process.name)

    def _exec_kill(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        process = self._execs.get(message["exec"])
        if process is not None:
            self._abandon(process)
        answer()

    # The sandbox

    def _socket(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        with socket.socket(message["family"], message["type"], message["protocol"]) as made:
            answer(descriptors=(made.fileno(),))

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
        if (self._children or not all(emptied)) and time.monotonic() < until:
            self._later(_KILL_INTERVAL / 5, lambda: self._shut_down(answer, until))
            return
        if self._children:
            pids = ", ".join(map(str, self._children))
            answer(error=HostError("end", f"sandbox {self._spec.id}", f"processes {pids} cannot be killed"))
            return
        os.unlink(self._path)  # noqa: PTH108
        self._ending = True
        answer()


Handler = Callable[[Supervisor, Connection, protocol.Message, list[int], Answer], None]
_HANDLERS: dict[str, Handler] = {
    "start": Supervisor._start,  # noqa: SLF001
    "signal": Supervisor._signal,  # noqa: SLF001
    "kill": Supervisor._kill,  # noqa: SLF001
    "reopen_log": Supervisor._reopen_log,  # noqa: SLF001
    "forget": Supervisor._forget,  # noqa: SLF001
    "containers": Supervisor._list,  # noqa: SLF001
    "exec": Supervisor._exec,  # noqa: SLF001
    "exec_kill": Supervisor._exec_kill,  # noqa: SLF001
    "socket": Supervisor._socket,  # noqa: SLF001
    "shutdown": Supervisor._shutdown,  # noqa: SLF001
}


def _as_host_error(operation: str, subject: str, error: Exception) -> HostError:
    if isinstance(error, HostError):
        return error
    if isinstance(error, OSError):
        reason = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        return HostError(operation, subject, reason, error.errno)
    return HostError(operation, subject, f"{type(error).__name__}: {error}")
