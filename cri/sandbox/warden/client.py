"""The daemon's side of a connection to a warden.

A warden answers many requests at once, and a start or an exec takes as long as a container's volumes do. So no request has a
time limit of its own; but a warden, with one thread that waits for nothing, says something within milliseconds. One that owes an
answer and says nothing at all for `PATIENCE` seconds, not even to a ping, is silent: stopped, or stuck in the kernel.
Whoever waits for it is told, and it is asked no more until it speaks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from cri.sandbox import wire
from cri.sandbox.host import (
    Attachment,
    ContainerState,
    DisconnectedError,
    Exec,
    HostError,
    Warden,
    WardenGoneError,
    WardenSilentError,
    WardenVersionError,
)
from cri.sandbox.spec import ContainerSpec, ExitRecord, ProcessSpec, SandboxSpec, Started
from cri.sandbox.warden import launch, protocol
from cri.sandbox.warden.handles import Handle, Handles, Outcome, WardenAttachment, WardenExec
from cri.sandbox.warden.silence import PATIENCE, Silence

_HAS_STREAMS = 2
"""The version of the protocol since which a warden attaches and sets the size of a terminal."""

Answer = asyncio.Future[tuple[Any, list[int]]]
"""What the warden answers, and the descriptors that come with it."""


class WardenClient(Warden):
    """One connection. Requests may overlap; answers and events are told apart by number."""

    def __init__(self, sandbox_id: str, channel: socket.socket, lost: Callable[[str], None]) -> None:
        """Take over a connected socket; `hello` must be awaited before anything else."""
        self.pid = 0
        self.descriptors: list[int] = []
        """What the warden announced, such as the pod's network namespace; closed with the connection."""
        self.sandbox_id = sandbox_id
        self.version = protocol.VERSION
        """Of the protocol, as the warden speaks it."""
        self._channel = channel
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[object, Answer] = {}
        self._next_number = 1
        self._outbox: deque[tuple[protocol.Message, list[int]]] = deque()
        self._execs = Handles[int]()
        self._attachments = Handles[str]()
        self._exits: asyncio.Queue[ExitRecord | None] = asyncio.Queue()
        self._closed = self._loop.create_future()
        self._ours = False
        """Whether the connection ends because we want it to."""
        self._silence = Silence(lambda: bool(self._waiting), self._ping, self._fell_silent)
        channel.setblocking(False)
        protocol.prepare(channel)
        self._loop.add_reader(channel, self._read)

    @classmethod
    async def connect(cls, spec: SandboxSpec, path: str, lost: Callable[[str], None]) -> WardenClient | None:
        """Connect to a running warden by its path; None if none listens there.

        Raises WardenSilentError for one that does not greet, WardenVersionError for one that this release cannot talk to.
        """
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        try:
            channel.connect(path)  # a local socket connects at once
        except BlockingIOError as error:  # nobody accepts, and others wait for that already
            channel.close()
            raise WardenSilentError("reach", f"warden of sandbox {spec.id}", "it accepts nobody") from error
        except OSError:  # no file, no socket, or nobody behind it
            channel.close()
            return None
        uid, pid = protocol.peer(channel)
        if uid != os.geteuid():
            channel.close()
            raise HostError("connect to warden", path, "it runs as another user")
        client = cls(spec.id, channel, lost)
        client.pid = pid
        try:
            await client.hello()
        except (WardenSilentError, WardenVersionError):
            raise
        except WardenGoneError:
            return None
        return client

    async def hello(self) -> None:
        """Wait until the warden is ready. Raises the HostError that kept it from being so."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._hello
        except TimeoutError:
            self._ours = True
            self._close()
            raise WardenSilentError(
                "reach",
                f"warden of sandbox {self.sandbox_id}",
                f"no word within {PATIENCE:g} s",
                pid=self.pid,
            ) from None
        except BaseException:
            self._ours = True
            self._close()
            raise

    def claim(self) -> None:
        """Tell a new warden that its sandbox is wanted. One whose daemon goes away before that ends itself."""
        self._post({"id": 0, "op": "claim"}, [])

    async def containers(self) -> Sequence[ContainerState]:
        """All containers that this warden has started."""
        result, _ = await self._request("containers")
        return [wire.decode(ContainerState, state) for state in result]

    async def start(self, container: ContainerSpec, log: int | None = None) -> Started:
        """Start the container's first process."""
        # A warden of an older release, and one that gets no descriptor, opens the log itself.
        descriptors = [] if log is None else [log]
        result, _ = await self._ask("start", descriptors, directory=container.directory)
        return wire.decode(Started, result)

    async def exec(
        self,
        container_id: str,
        process: ProcessSpec,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
    ) -> Exec:
        """Start a process inside a running container."""
        size = process.terminal_size
        if self.version < _HAS_STREAMS:
            process = wire.replace(process, terminal_size=None)
        result, pty = await self._open(
            "exec",
            (stdin, stdout, stderr),
            self._unwanted_exec,
            container=container_id,
            process=wire.encode(process),
        )
        if pty is not None and not process.tty:
            # Wardens of earlier releases pass on the container's own terminal, which is not the exec's to read.
            os.close(pty)
            pty = None
        if self.version < _HAS_STREAMS and pty is not None and size is not None:
            launch.set_terminal_size(pty, size)
        started = WardenExec(result["exec"], result["pid"], pty, self._execs, self._kill_exec)
        self._keep(result["exec"], started, self._execs)
        return started

    async def attach(
        self, container_id: str, *, stdin: int | None, stdout: int | None, stderr: int | None
    ) -> Attachment:
        """Connect these descriptors to a running container's first process."""
        if self.version < _HAS_STREAMS:
            reason = "its pod was started by an older release, which could not do that; make the pod anew"
            raise HostError("attach to", f"container {container_id}", reason)
        result, pty = await self._open(
            "attach", (stdin, stdout, stderr), self._unwanted_attachment, container=container_id
        )
        attached = WardenAttachment(result["attach"], pty, self._attachments, self._detach)
        self._keep(result["attach"], attached, self._attachments)
        return attached

    async def signal(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's first process."""
        await self._request("signal", container=container_id, signal=int(signal))

    async def kill(self, container_id: str) -> None:
        """KILL everything in the container."""
        await self._request("kill", container=container_id)

    async def reopen_log(self, container_id: str, log: int | None = None) -> None:
        """Go on with another log file."""
        await self._ask("reopen_log", [] if log is None else [log], container=container_id)

    async def forget(self, container_id: str) -> None:
        """Drop what the warden remembers of an ended container."""
        await self._request("forget", container=container_id)

    async def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """Make a socket that belongs to the pod's network stack."""
        _, (descriptor,) = await self._request(
            "socket", family=int(family), type=int(type_), protocol=protocol
        )
        made = socket.socket(fileno=descriptor)
        made.setblocking(True)
        return made

    async def sysctl(self, name: str, value: str | None = None) -> str:
        """Return a variable of the pod's network stack; with a value, set it, and return what it was before."""
        before, _ = await self._request("sysctl", name=name, value=value)
        return str(before)

    async def exits(self) -> AsyncIterator[ExitRecord]:
        """The containers' ends, each once. One consumer."""
        while (record := await self._exits.get()) is not None:
            yield record
        self._exits.put_nowait(None)  # whoever asks later learns of the end too

    async def shutdown(self) -> None:
        """KILL everything in the sandbox and end the warden."""
        self._ours = True
        try:
            await self._request("shutdown")
        except WardenGoneError:
            return
        except BaseException:
            self._ours = False
            raise
        await asyncio.shield(self._closed)

    async def disconnect(self) -> None:
        """Close the connection. What waits for an answer gets DisconnectedError."""
        self._ours = True
        self._close(
            DisconnectedError("wait for", f"warden of sandbox {self.sandbox_id}", "the daemon is stopping")
        )

    async def _open(
        self,
        operation: str,
        streams: Sequence[int | None],
        unwanted: Callable[[Any], None],
        **arguments: Any,
    ) -> tuple[Any, int | None]:
        """Have streams connected to something, which is the answer, with its terminal.

        `unwanted` gets an answer that comes after its caller has gone.
        """
        # Sent here and now, so that the caller may close its descriptors whatever happens to this task.
        answer = self._ask(
            operation,
            [fd for fd in streams if fd is not None],
            stdio=[fd is not None for fd in streams],
            **arguments,
        )
        try:
            result, descriptors = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda answer: _give_back(answer, unwanted))
            raise
        return result, descriptors[0] if descriptors else None

    def _keep(self, name: str, handle: Handle[Outcome], handles: Handles[Outcome]) -> None:
        handles.add(name, handle)
        if self._closed.done():
            handles.lost(self._gone())

    def _unwanted_exec(self, result: Any) -> None:
        self._execs.disown(result["exec"])
        self._post({"id": 0, "op": "exec_kill", "exec": result["exec"]}, [])

    def _unwanted_attachment(self, result: Any) -> None:
        self._attachments.disown(result["attach"])
        self._post({"id": 0, "op": "detach", "attach": result["attach"]}, [])

    async def _kill_exec(self, name: str) -> None:
        with contextlib.suppress(WardenGoneError):
            await self._request("exec_kill", exec=name)

    async def _detach(self, name: str) -> None:
        with contextlib.suppress(WardenGoneError):
            await self._request("detach", attach=name)

    async def _request(self, operation: str, **arguments: Any) -> tuple[Any, list[int]]:
        return await self._ask(operation, **arguments)

    def _ask(self, operation: str, descriptors: Sequence[int] = (), **arguments: Any) -> Answer:
        """Send a request. A cancelled answer keeps its place until it comes, and is thrown away then."""
        answer: Answer = self._loop.create_future()
        if self._closed.done():
            answer.set_exception(self._gone())
            return answer
        if self._silence.fallen:
            answer.set_exception(self._says_nothing())
            return answer
        number = self._next_number
        self._next_number += 1
        self._waiting[number] = answer
        self._silence.listen()
        try:
            self._post({"id": number, "op": operation, **arguments}, descriptors)
        except OSError as error:  # they cannot be copied
            del self._waiting[number]
            reason = f"its descriptors cannot be passed on: {error.strerror}"
            answer.set_exception(HostError("ask for", operation, reason, error.errno))
        return answer

    def _post(self, message: protocol.Message, descriptors: Sequence[int]) -> None:
        self._outbox.append((message, protocol.duplicate(descriptors)))
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            message, descriptors = self._outbox[0]
            try:
                protocol.send(self._channel, message, descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._channel, self._flush)
                return
            except OSError:
                self._close()
                return
            self._outbox.popleft()
            protocol.close_all(descriptors)
        if not self._closed.done():
            self._loop.remove_writer(self._channel)

    def _read(self) -> None:
        while not self._closed.done():
            try:
                received = protocol.receive(self._channel)
            except BlockingIOError:
                return
            except protocol.DescriptorsLostError as error:
                if (answer := self._waiting.pop(error.number, None)) is not None:
                    _refuse(answer)
                    continue
                received = None
            except (OSError, protocol.ProtocolError):
                received = None
            if received is None:
                self._close()
                return
            self._take(*received)

    def _ping(self) -> None:
        self._post({"id": 0, "op": "ping"}, [])  # an older release refuses, which is an answer, too

    def _fell_silent(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(self._says_nothing())

    def _greet(self, version: object) -> None:
        if isinstance(version, int) and protocol.OLDEST <= version <= protocol.VERSION:
            self.version = version
            self._hello.set_result(None)
        else:
            ours = f"{protocol.OLDEST} to {protocol.VERSION}"
            reason = f"it speaks version {version} of the protocol, this release versions {ours}; "
            reason += "serve with the release that started it until its pod has ended"
            subject = f"warden of sandbox {self.sandbox_id}"
            self._hello.set_exception(WardenVersionError("talk to", subject, reason, pid=self.pid))

    def _take(self, message: protocol.Message, descriptors: list[int]) -> None:
        self._silence.heard()
        if "event" in message:
            self._take_event(message)
        elif "hello" in message:
            self.pid = message["pid"]
            self.sandbox_id = message["hello"]
            self.descriptors = descriptors
            if not self._hello.done():
                self._greet(message.get("version"))
        elif "id" not in message:
            if not self._hello.done():
                self._hello.set_exception(launch.unpack_error(message["error"]))
        else:
            answer = self._waiting.pop(message["id"], None)
            if answer is None or answer.done():
                protocol.close_all(descriptors)
            elif "error" in message:
                answer.set_exception(launch.unpack_error(message["error"]))
            else:
                answer.set_result((message["ok"], descriptors))

    def _take_event(self, message: protocol.Message) -> None:
        if message["event"] == "exit":
            self._exits.put_nowait(wire.decode(ExitRecord, message["record"]))
        elif message["event"] == "exec_exit":
            self._execs.ended(message["exec"], message["code"])
        elif message["event"] == "attach_end":
            self._attachments.ended(message["attach"], message["reason"])

    def _close(self, reason: HostError | None = None) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
        self._silence.stop()
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        for _, descriptors in self._outbox:
            protocol.close_all(descriptors)
        self._outbox.clear()
        protocol.close_all(self.descriptors)
        self.descriptors = []
        gone = reason or self._gone()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(gone)
        self._execs.lost(gone)
        self._attachments.lost(gone)
        self._exits.put_nowait(None)
        was_ready = self._hello.done()
        if not was_ready:
            self._hello.set_exception(gone)
        if was_ready and not self._ours:
            self._lost(self.sandbox_id)

    def _gone(self) -> WardenGoneError:
        return WardenGoneError(
            "reach",
            f"warden of sandbox {self.sandbox_id}",
            "it has ended, and the sandbox's containers with it",
        )

    def _says_nothing(self) -> WardenSilentError:
        reason = f"it has said nothing for {PATIENCE:g} s: it was stopped, or hangs in the kernel"
        return WardenSilentError("reach", f"warden of sandbox {self.sandbox_id}", reason, pid=self.pid)


def _refuse(answer: Answer) -> None:
    """End the waiting for an answer whose terminal or socket did not get here. The warden's copy is closed, which ends its user."""
    if not answer.done():
        reason = "the daemon has too many files open"
        answer.set_exception(HostError("take", "what the warden has opened", reason, errno.EMFILE))


def _give_back(answer: Answer, unwanted: Callable[[Any], None]) -> None:
    """End what was answered after its caller had gone."""
    if answer.cancelled() or answer.exception() is not None:
        return
    result, descriptors = answer.result()
    protocol.close_all(descriptors)
    unwanted(result)
