"""The daemon's side of a connection to a warden."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from cri.sandbox import wire
from cri.sandbox.host import (
    ContainerState,
    DisconnectedError,
    Exec,
    HostError,
    Warden,
    WardenGoneError,
)
from cri.sandbox.spec import ContainerSpec, ExitRecord, ProcessSpec, SandboxSpec, Started
from cri.sandbox.warden import launch, protocol

_HELLO_SECONDS = 10.0

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
        self._channel = channel
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[int, Answer] = {}
        self._next_number = 1
        self._outbox: deque[tuple[protocol.Message, list[int]]] = deque()
        self._execs: dict[str, WardenExec] = {}
        self._unwanted: set[str] = set()
        self._early_exits: dict[str, int] = {}
        self._exits: asyncio.Queue[ExitRecord | None] = asyncio.Queue()
        self._closed = self._loop.create_future()
        self._ours = False
        """Whether the connection ends because we want it to."""
        channel.setblocking(False)
        protocol.prepare(channel)
        self._loop.add_reader(channel, self._read)

    @classmethod
    async def connect(cls, spec: SandboxSpec, path: str, lost: Callable[[str], None]) -> WardenClient | None:
        """Connect to a running warden by its path; None if none listens there."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        try:
            channel.connect(path)  # a local socket connects at once
        except (FileNotFoundError, ConnectionRefusedError):
            channel.close()
            return None
        except OSError as error:
            channel.close()
            raise HostError("connect to warden", path, error.strerror or str(error), error.errno) from error
        if protocol.peer_uid(channel) != os.geteuid():
            channel.close()
            raise HostError("connect to warden", path, "it runs as another user")
        client = cls(spec.id, channel, lost)
        try:
            await client.hello()
        except WardenGoneError:
            return None
        return client

    async def hello(self) -> None:
        """Wait until the warden is ready. Raises the HostError that kept it from being so."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                await self._hello
        except TimeoutError:
            self._ours = True
            self._close()
            raise WardenGoneError(
                "reach", f"warden of sandbox {self.sandbox_id}", f"no answer within {_HELLO_SECONDS:.0f} s"
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

    async def start(self, container: ContainerSpec) -> Started:
        """Start the container's first process."""
        result, _ = await self._request("start", directory=container.directory)
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
        streams = (stdin, stdout, stderr)
        # Sent here and now, so that the caller may close its descriptors whatever happens to this task.
        answer = self._ask(
            "exec",
            [fd for fd in streams if fd is not None],
            container=container_id,
            process=wire.encode(process),
            stdio=[fd is not None for fd in streams],
        )
        try:
            result, descriptors = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(self._kill_unwanted)
            raise
        name = result["exec"]
        started = WardenExec(self, name, result["pid"], descriptors[0] if descriptors else None)
        if name in self._early_exits:
            started.ended(self._early_exits.pop(name))
        elif self._closed.done():
            started.lost(self._gone())
        else:
            self._execs[name] = started
        return started

    async def signal(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's first process."""
        await self._request("signal", container=container_id, signal=int(signal))

    async def kill(self, container_id: str) -> None:
        """KILL everything in the container."""
        await self._request("kill", container=container_id)

    async def reopen_log(self, container_id: str) -> None:
        """Open the log file anew."""
        await self._request("reopen_log", container=container_id)

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

    async def request_exec(self, operation: str, name: str) -> None:
        """A request about an exec; none is needed any more when the warden is gone."""
        with contextlib.suppress(WardenGoneError):
            await self._request(operation, exec=name)

    def forget_exec(self, name: str) -> None:
        """Stop waiting for an exec's end."""
        self._execs.pop(name, None)

    async def _request(self, operation: str, **arguments: Any) -> tuple[Any, list[int]]:
        return await self._ask(operation, **arguments)

    def _ask(self, operation: str, descriptors: Sequence[int] = (), **arguments: Any) -> Answer:
        """Send a request. A cancelled answer keeps its place until it comes, and is thrown away then."""
        answer: Answer = self._loop.create_future()
        if self._closed.done():
            answer.set_exception(self._gone())
            return answer
        number = self._next_number
        self._next_number += 1
        self._waiting[number] = answer
        self._post({"id": number, "op": operation, **arguments}, descriptors)
        return answer

    def _kill_unwanted(self, request: Answer) -> None:
        """End an exec that was answered after its caller had gone."""
        if request.cancelled() or request.exception() is not None:
            return
        result, descriptors = request.result()
        protocol.close_all(descriptors)
        self._unwanted.add(result["exec"])
        self._post({"id": 0, "op": "exec_kill", "exec": result["exec"]}, [])

    def _post(self, message: protocol.Message, descriptors: Sequence[int]) -> None:
        self._outbox.append((message, [os.dup(fd) for fd in descriptors]))
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
            except (OSError, protocol.ProtocolError):
                received = None
            if received is None:
                self._close()
                return
            self._take(*received)

    def _greet(self, version: object) -> None:
        if version == protocol.VERSION:
            self._hello.set_result(None)
        else:
            reason = f"it speaks version {version} of the protocol, this release version {protocol.VERSION}; "
            reason += "serve with the release that started it until its pod has ended"
            self._hello.set_exception(HostError("talk to", f"warden of sandbox {self.sandbox_id}", reason))

    def _take(self, message: protocol.Message, descriptors: list[int]) -> None:
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
            process = self._execs.pop(message["exec"], None)
            if process is not None:
                process.ended(message["code"])
            elif message["exec"] in self._unwanted:
                self._unwanted.discard(message["exec"])
            else:  # the answer to the exec is here, but the task that waits for it has not run yet
                self._early_exits[message["exec"]] = message["code"]

    def _close(self, reason: HostError | None = None) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
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
        for process in self._execs.values():
            process.lost(gone)
        self._execs.clear()
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


class WardenExec(Exec):
    """A process in a container."""

    def __init__(self, client: WardenClient, name: str, pid: int, pty: int | None) -> None:
        self.pid = pid
        self.pty = pty
        self._client = client
        self._name = name
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """Wait for the end of the process."""
        return await asyncio.shield(self._code)

    async def kill(self) -> None:
        """KILL the process and everything in its session."""
        if not self._code.done():
            await self._client.request_exec("exec_kill", self._name)

    async def close(self) -> None:
        """Let go of the process."""
        await self.kill()
        self._client.forget_exec(self._name)
        if self.pty is not None:
            os.close(self.pty)
            self.pty = None
        if not self._code.done():
            self._code.cancel()

    def ended(self, code: int) -> None:
        """The process has ended."""
        if not self._code.done():
            self._code.set_result(code)

    def lost(self, error: HostError) -> None:
        """The warden is gone, and the process with it."""
        if not self._code.done():
            self._code.set_exception(error)
            self._code.exception()  # nobody may be waiting
