"""The daemon's side of the spawner."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from cri.sandbox import wire
from cri.sandbox.host import HostError, WardenGoneError
from cri.sandbox.spec import SandboxSpec
from cri.sandbox.warden import protocol
from cri.sandbox.warden.client import WardenClient


class Spawner:
    """The process that forks wardens."""

    def __init__(self, driver: str) -> None:
        """`driver` is the module with the wardens' driver."""
        self._driver = driver
        self._pid = 0
        self._channel: socket.socket | None = None
        # The daemon raises its own; its pods are to have what it was started with.
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def start(self) -> None:
        """Start the process (posix_spawn: no copy of this one is made). Blocks for a moment."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            protocol.prepare(theirs)
            # Isolated, without site: the directories that the modules come from are all it gets.
            paths = list(
                dict.fromkeys(_import_directory(name) for name in ("cri", "baustelle", "_cffi_backend"))
            )
            program = (
                f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, {self._open_files!r}); "
                f"sys.path[:0] = {paths!r}; from cri.sandbox.warden.spawner import main; main(3, {self._driver!r})"
            )
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", program],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
            )
        ours.setblocking(False)
        protocol.prepare(ours)
        self._channel = ours

    async def spawn(
        self, spec: SandboxSpec, lost: Callable[[str], None], known: Callable[[int], Awaitable[None]]
    ) -> WardenClient:
        """Have a warden forked for a sandbox, and wait until it is ready.

        `known` is called with its pid, to write that down: until then it is not claimed, and would end with the daemon.
        """
        try:
            return await self._spawn(spec, lost, known)
        except WardenGoneError:
            # The spawner took the request with it, or the spare did: whoever had it has gone, and has made nothing that is left.
            return await self._spawn(spec, lost, known)

    def close(self) -> None:
        """End the spawner; wardens live on. Blocks for a moment."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)

    async def _spawn(
        self, spec: SandboxSpec, lost: Callable[[str], None], known: Callable[[int], Awaitable[None]]
    ) -> WardenClient:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._ask(spec, theirs)
        except BaseException:
            ours.close()
            raise
        client = WardenClient(spec.id, ours, lost)
        await client.hello()
        try:
            await known(client.pid)
        except BaseException:
            await client.disconnect()
            raise
        client.claim()
        return client

    def _ask(self, spec: SandboxSpec, channel: socket.socket) -> None:
        if self._has_died():
            self.start()
        assert self._channel is not None
        try:
            protocol.send(self._channel, {"sandbox": wire.encode(spec)}, [channel.fileno()])
        except ConnectionError as error:  # it is dying at this moment
            raise WardenGoneError(
                "ask the spawner for", f"sandbox {spec.id}", str(error), error.errno
            ) from error
        except OSError as error:
            raise HostError("ask the spawner for", f"sandbox {spec.id}", str(error), error.errno) from error

    def _has_died(self) -> bool:
        if self._channel is None:
            return True
        try:
            # It never writes. The end of the connection shows before the process can be waited for.
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        self.close()
        return True


def _import_directory(name: str) -> str:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    path = Path(module.__file__)
    return str(path.parent.parent if path.name == "__init__.py" else path.parent)
