"""A warden of the kernel in memory, with the real one's way of attaching."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from cri.sandbox import wire
from cri.sandbox.fake.kernel import FakeKernel
from cri.sandbox.host import (
    Attachment,
    ContainerState,
    DisconnectedError,
    Exec,
    HostError,
    NetworkStack,
    StartError,
    UnknownContainerError,
    Warden,
    WardenGoneError,
)
from cri.sandbox.spec import ContainerSpec, Credentials, ExitRecord, ProcessSpec, Started
from cri.sandbox.warden import attachments, stdin
from cri.sandbox.warden.loop import READ, WRITE


class FakeWarden(Warden):
    """A warden whose processes are the fake kernel's. It survives `disconnect`, as the real one does."""

    def __init__(self, kernel: FakeKernel, jail: str) -> None:
        self.pid = 1
        self.alive = True
        self.network = FakeNetworkStack()
        self._kernel = kernel
        self._jail = jail
        self._started: dict[str, Started] = {}
        self._exited: dict[str, ExitRecord] = {}
        self._streams: dict[str, FakeStreams] = {}
        self._attachments: list[FakeAttachment] = []
        self._news: asyncio.Queue[ExitRecord | None] = asyncio.Queue()

    async def containers(self) -> Sequence[ContainerState]:
        """All containers started so far."""
        self._check()
        return [ContainerState(name, self._started[name], self._exited.get(name)) for name in self._started]

    async def start(self, container: ContainerSpec, log: int | None = None) -> Started:
        """Start the first process."""
        self._check()
        directory = Path(container.directory)

        streams = FakeStreams(container.process, lambda: self._kernel.exit(pid, 0))

        def ended(code: int, signal: int) -> None:
            record = ExitRecord(container.id, code, time.time_ns(), signal=signal)
            wire.write_exit_record(directory, record)
            self._exited[container.id] = record
            streams.close()
            self._news.put_nowait(record)

        try:
            pid = self._kernel.spawn(self._child(container.id), container.process.argv, ended)
        except OSError as error:
            streams.close()
            raise StartError(
                "start", f"container {container.id}", error.strerror or "", error.errno
            ) from error
        started = Started(pid, time.time_ns(), Credentials(0, 0))
        self._started[container.id] = started
        self._streams[container.id] = streams
        return started

    async def exec(
        self,
        container_id: str,
        process: ProcessSpec,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
    ) -> Exec:
        """Start a process beside the first; it prints nothing."""
        self._check()
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def tell(code: int, _signal: int) -> None:
            if not ended.done():
                ended.set_result(code)

        try:
            pid = self._kernel.spawn(self._child(container_id), process.argv, tell)
        except OSError as error:
            raise StartError(
                "exec in", f"container {container_id}", error.strerror or "", error.errno
            ) from error
        return FakeExec(self._kernel, pid, ended)

    async def attach(
        self, container_id: str, *, stdin: int | None, stdout: int | None, stderr: int | None
    ) -> Attachment:
        """Connect descriptors to what `print` says and `cat` hears."""
        self._check()
        if container_id not in self._started or container_id in self._exited:
            raise HostError("attach to", f"container {container_id}", "it is not running")
        streams = self._streams[container_id]
        if stdin is not None and (reason := streams.refuses_stdin()):
            raise HostError("attach to stdin of", f"container {container_id}", reason)
        attachment = FakeAttachment()
        self._attachments.append(attachment)
        outputs = {
            name: os.dup(fd) for name, fd in (("stdout", stdout), ("stderr", stderr)) if fd is not None
        }
        attachment.connected = streams.attachments.attach(
            streams.stdin, None if stdin is None else os.dup(stdin), outputs, attachment.ended
        )
        return attachment

    def print(self, container_id: str, stream: str, data: bytes) -> None:
        """For tests: the container's program prints."""
        self._streams[container_id].attachments.feed(stream, data)

    def lost(self, error: HostError | None = None) -> None:
        """The connection has ended: nobody of its daemon is attached any more."""
        for attachment in self._attachments:
            attachment.lose(error or WardenGoneError("reach", f"warden of {self._jail}", "it has ended"))
        self._attachments.clear()
        if not self.alive:
            for streams in self._streams.values():
                streams.close()

    async def signal(self, container_id: str, signal: int) -> None:
        """Signal the first process."""
        self._check_known(container_id)
        try:
            self._kernel.kill(self._started[container_id].pid, signal)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise HostError("signal", f"container {container_id}", str(error), error.errno) from error

    async def kill(self, container_id: str) -> None:
        """KILL everything in the container."""
        self._check_known(container_id)
        self._kernel.kill_all(self._child(container_id))

    async def reopen_log(self, container_id: str, log: int | None = None) -> None:
        """There are no logs here."""
        self._check()
        self._check_known(container_id)

    async def forget(self, container_id: str) -> None:
        """Drop an ended container."""
        self._check()
        self._started.pop(container_id, None)
        self._exited.pop(container_id, None)
        self._streams.pop(container_id, None)

    async def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """A socket of the test's own process."""
        self._check()
        return socket.socket(family, type_, protocol)

    async def sysctl(self, name: str, value: str | None = None) -> str:
        """A variable in memory."""
        self._check()
        return self.network.sysctl(name, value)

    async def exits(self) -> AsyncIterator[ExitRecord]:
        """Ends as they happen."""
        news = self._news
        while (record := await news.get()) is not None:
            yield record

    async def shutdown(self) -> None:
        """End."""
        self.alive = False
        self.lost()
        self._news.put_nowait(None)

    async def disconnect(self) -> None:
        """Stop telling this daemon; processes go on, and the next daemon is told."""
        self.lost(DisconnectedError("wait for", f"warden of {self._jail}", "the daemon is stopping"))
        self._news.put_nowait(None)
        self._news = asyncio.Queue()

    def _check_known(self, container_id: str) -> None:
        self._check()
        if container_id not in self._started:
            raise UnknownContainerError("find", f"container {container_id}", "it was never started")

    def _child(self, container_id: str) -> str:
        return f"{self._jail}.{jail_name(container_id)}"

    def _check(self) -> None:
        if not self.alive:
            raise WardenGoneError("talk to", f"warden of {self._jail}", "it has ended")


class FakeExec(Exec):
    """An exec'd process of the fake kernel."""

    def __init__(self, kernel: FakeKernel, pid: int, ended: asyncio.Future[int]) -> None:
        self.pid = pid
        self._kernel = kernel
        self._ended = ended

    async def wait(self) -> int:
        """Wait for the end."""
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """KILL it."""
        if not self._ended.done():
            self._kernel.kill(self.pid, 9)

    async def close(self) -> None:
        """KILL it if it still runs."""
        await self.kill()


class FakeAttachment(Attachment):
    """Somebody who is attached."""

    def __init__(self) -> None:
        self.connected: attachments.Attachment
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(self) -> str:
        """Wait for its end."""
        return await asyncio.shield(self._reason)

    async def close(self) -> None:
        """Detach."""
        self.connected.close()

    def ended(self, reason: str) -> None:
        """The warden has let go."""
        if not self._reason.done():
            self._reason.set_result(reason)

    def lose(self, error: HostError) -> None:
        """The connection has ended."""
        if not self._reason.done():
            self._reason.set_exception(error)
            self._reason.exception()  # nobody may be waiting
        self.connected.close()


class FakeStreams:
    """A container's streams: what is printed goes to those who are attached, what they say to the program if that is `cat`."""

    def __init__(self, process: ProcessSpec, end: Callable[[], None]) -> None:
        """`end` is called when `cat` comes to the end of its stdin."""
        self.stdin: stdin.Stdin | None = None
        self.attachments = attachments.Attachments(_AsyncioWatcher(), lambda _: None)
        self._names = ["stdout"] if process.tty else ["stdout", "stderr"]
        for name in self._names:
            self.attachments.begin(name)
        self._end = end
        self._heard = -1
        if process.stdin:
            self._heard, told = os.pipe()
            self.stdin = stdin.Stdin(_AsyncioWatcher(), told, once=process.stdin_once, terminal=process.tty)
            if process.argv[0] == "cat":
                os.set_blocking(self._heard, False)
                asyncio.get_running_loop().add_reader(self._heard, self._hear)

    def refuses_stdin(self) -> str:
        """Why nobody can be attached to stdin, if so."""
        return "it was created without one" if self.stdin is None else self.stdin.closed

    def close(self) -> None:
        """The program has ended. May be repeated."""
        while self._names:
            self.attachments.end(self._names.pop())
        if self.stdin is not None:
            self.stdin.close(stdin.PROGRAM_ENDED)
        if self._heard >= 0:
            asyncio.get_running_loop().remove_reader(self._heard)
            os.close(self._heard)
            self._heard = -1

    def _hear(self) -> None:
        if data := os.read(self._heard, 65536):
            self.attachments.feed("stdout", data)
        else:
            self._end()


class _AsyncioWatcher:
    """What a warden's loop does, done by asyncio's."""

    def watch(self, file: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back when it can be read or written."""
        loop = asyncio.get_running_loop()
        if events & READ:
            loop.add_reader(file, callback, READ)
        if events & WRITE:
            loop.add_writer(file, callback, WRITE)

    def unwatch(self, file: int) -> None:
        """Stop calling back."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(file)
        loop.remove_writer(file)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call once, later."""
        asyncio.get_running_loop().call_later(seconds, action)


class FakeNetworkStack(NetworkStack):
    """The stack of a fake pod: it has whatever variable it is asked for, 0 until that is set."""

    def __init__(self) -> None:
        self.move_target = -1
        self.name = "fake"
        self.sysctls: dict[str, str] = {}

    def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """A socket of the test's own process."""
        return socket.socket(family, type_, protocol)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """A variable in memory."""
        if not name.startswith("net."):
            raise PermissionError(errno.EPERM, "only net.* belongs to a pod's network", f"sysctl {name}")
        before = self.sysctls.get(name, "0")
        if value is not None:
            self.sysctls[name] = value
        return before

    def close(self) -> None:
        """There is nothing to let go of."""


def jail_name(identifier: str) -> str:
    """A jail's name must not be all digits, or it would be its jid (jail(8), "name")."""
    return f"c{identifier}"
