"""Both sides of a session without a node: a client as a script of calls, and a warden that runs programs of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.sandbox.host import Exec, StartError
from cri.sandbox.spec import ContainerSpec, ProcessSpec, TerminalSize
from cri.streaming.plumbing import set_size
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams


class Client:
    """A CommandSession, with the client's side as attributes and methods."""

    def __init__(self) -> None:
        self.input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sizes: asyncio.Queue[TerminalSize | None] = asyncio.Queue()
        self.output = {Output.STDOUT: b"", Output.STDERR: b""}
        self.reads = asyncio.Event()
        self.reads.set()
        self.left = asyncio.Event()
        self.outcome: Outcome | None = None
        self._changed = asyncio.Condition()

    async def stdin(self) -> bytes:
        data = await self.input.get()
        if data is None:
            raise ClientGoneError
        return data

    async def resized(self) -> TerminalSize | None:
        return await self.sizes.get()

    async def send(self, output: Output, data: bytes) -> None:
        await self.reads.wait()
        if self.left.is_set():
            raise ClientGoneError
        async with self._changed:
            self.output[output] += data
            self._changed.notify_all()

    async def finish(self, outcome: Outcome) -> None:
        self.outcome = outcome

    async def gone(self) -> None:
        await self.left.wait()

    def leave(self) -> None:
        self.left.set()
        self.input.put_nowait(None)

    async def see(self, text: bytes, output: Output = Output.STDOUT) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: text in self.output[output])


class LocalExec(Exec):
    def __init__(self, process: subprocess.Popen[bytes], terminal: int | None) -> None:
        self.process = process
        self.pid = process.pid
        self.pty = terminal
        self.closed = False

    async def wait(self) -> int:
        while (code := self.process.poll()) is None:
            await asyncio.sleep(0.005)
        return 128 - code if code < 0 else code

    async def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)

    async def close(self) -> None:
        self.closed = True
        await self.kill()
        self.process.wait()
        if self.pty is not None:
            os.close(self.pty)
            self.pty = None


class LocalWarden:
    """Runs programs as a warden does: in sessions of their own, with the descriptors that it is given."""

    def __init__(self) -> None:
        self.execs: list[LocalExec] = []

    async def exec(self, container_id: str, process: ProcessSpec, **streams: int | None) -> LocalExec:
        given: dict[str, Any] = {
            name: fd if fd is not None else subprocess.DEVNULL for name, fd in streams.items()
        }
        master = terminal = None
        if process.tty:
            master, terminal = pty.openpty()
            if process.terminal_size is not None:
                set_size(master, process.terminal_size)
            given = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
        command = ["setsid", "-c", *process.argv] if process.tty else list(process.argv)
        try:
            started = subprocess.Popen(command, **given, start_new_session=not process.tty)
        except FileNotFoundError as error:
            raise StartError("exec", f'"{process.argv[0]}"', "executable file not found in $PATH") from error
        finally:
            if terminal is not None:
                os.close(terminal)
        self.execs.append(LocalExec(started, master))
        return self.execs[-1]

    async def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        return socket.socket(family, type_, protocol)


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def warden() -> Iterator[LocalWarden]:
    made = LocalWarden()
    yield made
    assert all(one.closed and one.process.poll() is not None for one in made.execs)


@pytest.fixture
def container() -> ContainerSpec:
    return ContainerSpec("c" * 64, "s" * 64, "/nowhere", (), ProcessSpec(("true",), env=("A=b",)))


@pytest.fixture
def streams() -> Streams:
    """All but a terminal."""
    return Streams(stdin=True, stdout=True, stderr=True, tty=False)


@pytest.fixture
def terminal() -> Streams:
    return Streams(stdin=True, stdout=True, stderr=False, tty=True)


def _descriptors() -> dict[str, str]:
    """Pipes and terminals that are open; sockets are the event loop's, too."""
    found = {}
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the directory
            kind = str(entry.readlink())
            if kind.startswith("pipe:") or "ptmx" in kind or "/pts/" in kind:
                found[entry.name] = kind
    return found


@pytest.fixture(autouse=True)
def no_descriptor_is_lost() -> Iterator[None]:
    before = _descriptors()
    yield
    assert _descriptors().items() <= before.items()
