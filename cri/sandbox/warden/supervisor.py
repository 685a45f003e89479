"""What a warden does: containers and execs on request, exits recorded and told.

Nothing here waits for anything but the loop: starts and execs are answered when the program runs, and kills
that do not work at once are repeated by timer. A request that fails is answered with its error, and never ends the
warden. Signals that would end it are ignored: `shutdown` is the only way. HUP has it listen anew, for a daemon that
cannot find its socket.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cri.sandbox import wire
from cri.sandbox.host import HostError, UnknownContainerError
from cri.sandbox.spec import SandboxSpec
from cri.sandbox.warden import launch, protocol
from cri.sandbox.warden.attachments import Attachment
from cri.sandbox.warden.container import Phase, SupervisedContainer, read_plan
from cri.sandbox.warden.driver import Driver
from cri.sandbox.warden.execs import Execs
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.loop import Loop
from cri.sandbox.warden.server import Answer, Connection, Server, given_streams

SOCKET_NAME = "warden.sock"
_SIGNAL_INTERVAL = 0.005
_SIGNAL_INTERVAL_MAX = 0.5
_KILL_INTERVAL = 0.01
_KILL_SECONDS = 10.0
_DRAIN_SECONDS = 2.0
"""How long the output of an ended container is still read, if something holds its pipe."""
_MAX_ATTACHMENTS = 256
"""Of a pod: each takes up to three descriptors, of which a process may have 1024 by default (RLIMIT_NOFILE)."""


def socket_path(spec: SandboxSpec) -> str:
    """Where the warden of a sandbox listens. Raises ValueError for a path that is too long."""
    return protocol.check_path(f"{spec.runtime_directory}/{SOCKET_NAME}")


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
        self._execs = Execs(driver, self._loop, self._server)
        self._attachments: dict[str, tuple[Connection, Attachment]] = {}
        self._attachment_numbers = itertools.count(1)
        self._path = ""
        self._claimed = False
        self._ending = False

    def run(self, channel: socket.socket) -> None:
        """Supervise until told to shut down. `channel` leads to the daemon that asked for this warden."""
        self._loop.catch_signals({signal.SIGHUP: self._listen_anew})
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

    def _listen_anew(self) -> None:
        if self._path and not self._ending:
            Path(self._path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._server.listen(self._path)

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

    # Containers

    def _container(self, message: protocol.Message) -> SupervisedContainer:
        container = self._containers.get(message["container"])
        if container is None:
            subject = f"container {message['container']}"
            raise UnknownContainerError(launch.FIND, subject, "its warden has not started it")
        return container

    def _ping(self, _: Connection, __: protocol.Message, ___: list[int], answer: Answer) -> None:
        answer()

    def _start(
        self, _: Connection, message: protocol.Message, descriptors: list[int], answer: Answer
    ) -> None:
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
        log = descriptors[0] if descriptors else None
        container = SupervisedContainer(plan, self._driver, self._loop, log)
        self._containers[container.id] = container
        self._starting[container.id] = answer
        try:
            container.start(
                target, lambda: self._started(container), lambda status: self._ended(container, status)
            )
        except HostError:
            del self._containers[container.id], self._starting[container.id]
            raise

    def _started(self, container: SupervisedContainer) -> None:
        answer = self._starting.pop(container.id)
        if container.failure is None:
            container.running()
            answer(wire.encode(container.started))
            return
        del self._containers[container.id]
        container.close()
        answer(error=container.failure)
        self._driver.end(container.plan)

    def _ended(self, container: SupervisedContainer, status: int) -> None:
        container.pid = 0  # reaped: the number may be another's from now on
        if container.phase is not Phase.RUNNING:
            return
        with contextlib.ExitStack() as whatever_fails:  # the end is no secret
            whatever_fails.callback(self._tell_end, container)
            whatever_fails.callback(self._loop.later, _DRAIN_SECONDS, container.close)
            whatever_fails.callback(container.finish, status)
            # What has left the container's processes behind (a shared process namespace) ends with it.
            until = time.monotonic() + _KILL_SECONDS
            whatever_fails.callback(self._kill_until_empty, container, until)
            whatever_fails.callback(self._driver.end, container.plan)
            container.outputs.drain()

    def _tell_end(self, container: SupervisedContainer) -> None:
        self._server.broadcast({"event": "exit", "record": wire.encode(container.exited)})

    def _kill_until_empty(self, container: SupervisedContainer, until: float) -> None:
        """KILL everything, again and again: a process may fork while it is killed."""
        try:
            empty = self._driver.kill(container.plan, container.pid)
        except (HostError, OSError) as error:
            warn(f"kill what is in container {container.id}: {error}")
            empty = False
        if (not empty or container.is_on_its_way) and time.monotonic() < until:
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

    def _reopen_log(
        self, _: Connection, message: protocol.Message, descriptors: list[int], answer: Answer
    ) -> None:
        self._container(message).reopen_log(descriptors[0] if descriptors else None)
        answer()

    def _forget(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        container = self._containers.get(message["container"])
        if container is not None:
            if container.phase is not Phase.EXITED:
                raise HostError("forget", f"container {container.id}", "it is running")
            container.close()
            del self._containers[container.id]
        answer()

    def _list(self, _: Connection, __: protocol.Message, ___: list[int], answer: Answer) -> None:
        known = [one.state() for one in self._containers.values() if one.phase is not Phase.STARTING]
        answer([wire.encode(state) for state in known])

    # Processes beside containers, and who is attached

    def _exec(
        self, connection: Connection, message: protocol.Message, descriptors: list[int], answer: Answer
    ) -> None:
        self._execs.start(self._container(message), connection, message, descriptors, answer)

    def _exec_kill(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        self._execs.kill(message["exec"])
        answer()

    def _attach(
        self, connection: Connection, message: protocol.Message, descriptors: list[int], answer: Answer
    ) -> None:
        container = self._container(message)
        if len(self._attachments) >= _MAX_ATTACHMENTS:
            reason = f"{_MAX_ATTACHMENTS} clients are attached to its pod's containers already; detach one"
            raise HostError("attach to", f"container {container.id}", reason)
        name = f"attach-{next(self._attachment_numbers)}"
        streams = given_streams(message, descriptors)

        def ended(reason: str) -> None:
            self._attachments.pop(name, None)
            self._server.post(connection, {"event": "attach_end", "attach": name, "reason": reason})

        stdin = streams.pop("stdin", None)
        attachment = container.attach(stdin, streams, ended)
        if not attachment.is_over:
            self._attachments[name] = (connection, attachment)
        try:
            answer({"attach": name}, descriptors=() if container.pty is None else (container.pty,))
        except OSError:
            attachment.close()
            raise

    def _detach(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        if message["attach"] in self._attachments:
            self._attachments[message["attach"]][1].close()
        answer()

    def _left(self, connection: Connection) -> None:
        """A daemon has gone, and with it those who wait for its execs; and the sandbox, if it was made in vain."""
        if not self._claimed:
            self._end()
        self._execs.kill_those_of(connection)
        for owner, attachment in list(self._attachments.values()):
            if owner is connection:
                attachment.close()

    # The sandbox

    def _socket(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        with self._driver.make_socket(message["family"], message["type"], message["protocol"]) as made:
            answer(descriptors=(made.fileno(),))

    def _sysctl(self, _: Connection, message: protocol.Message, __: list[int], answer: Answer) -> None:
        answer(self._driver.sysctl(message["name"], message["value"]))

    def _shutdown(self, _: Connection, __: protocol.Message, ___: list[int], answer: Answer) -> None:
        self._shut_down(answer, time.monotonic() + _KILL_SECONDS)

    def _shut_down(self, answer: Answer, until: float) -> None:
        self._execs.kill_all()
        emptied = [
            self._driver.kill(container.plan, container.pid)
            for container in self._containers.values()
            if container.phase is not Phase.EXITED or time.monotonic() < until
        ]
        on_their_way = bool(self._loop.children or self._loop.births)
        if (on_their_way or not all(emptied)) and time.monotonic() < until:
            self._loop.later(_KILL_INTERVAL / 5, lambda: self._shut_down(answer, until))
            return
        if on_their_way:
            pids = ", ".join(map(str, self._loop.children)) or "on their way into it"
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
    "ping": Supervisor._ping,  # noqa: SLF001
    "start": Supervisor._start,  # noqa: SLF001
    "signal": Supervisor._signal,  # noqa: SLF001
    "kill": Supervisor._kill,  # noqa: SLF001
    "reopen_log": Supervisor._reopen_log,  # noqa: SLF001
    "forget": Supervisor._forget,  # noqa: SLF001
    "containers": Supervisor._list,  # noqa: SLF001
    "exec": Supervisor._exec,  # noqa: SLF001
    "exec_kill": Supervisor._exec_kill,  # noqa: SLF001
    "attach": Supervisor._attach,  # noqa: SLF001
    "detach": Supervisor._detach,  # noqa: SLF001
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
