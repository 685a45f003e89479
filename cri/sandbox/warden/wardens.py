"""What every host does with its wardens: start one, find it again, end one that may not answer, find those that no record names."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Protocol

import structlog

from cri.sandbox.host import HostError, UnreachableWardenError, Warden, WardenVersionError
from cri.sandbox.spec import SandboxSpec
from cri.sandbox.warden import identity
from cri.sandbox.warden.client import WardenClient
from cri.sandbox.warden.identity import StartOf, WardenIdentity
from cri.sandbox.warden.supervisor import SOCKET_NAME, socket_path
from cri.sandbox.wire import WireError

log = structlog.get_logger(__name__)

_SHUTDOWN_SECONDS = 15.0
_LISTEN_SECONDS = 2.0
"""What a warden may take until it listens anew."""
_DEATH_SECONDS = 2.0
_PAUSE = 0.01


class WardenSpawner(Protocol):
    """Where a host gets its wardens from: `spawning.Spawner`."""

    def start(self) -> None:
        """Get ready. Blocks for a moment."""

    async def spawn(
        self, spec: SandboxSpec, lost: Callable[[str], None], known: Callable[[int], Awaitable[None]]
    ) -> Warden:
        """The warden of a new sandbox, whose pid was given to `known`. Raises HostError."""

    def close(self) -> None:
        """End; wardens live on. Blocks for a moment."""


class Wardens:
    """The wardens of a node."""

    def __init__(self, spawner: WardenSpawner, start_of: StartOf) -> None:
        self.lost: Callable[[str], None] = lambda _: None
        """Called with a sandbox's id when its warden dies unasked."""
        self._spawner = spawner
        self._start_of = start_of
        self._hanging: dict[str, WardenIdentity] = {}
        """Those that were killed and have not died, by sandbox: nobody waits for them again."""

    async def spawn(self, spec: SandboxSpec) -> Warden:
        """The warden of a new sandbox, written down. Raises HostError."""

        async def known(pid: int) -> None:
            await asyncio.to_thread(self._write_down, spec, pid)

        return await self._spawner.spawn(spec, self.lost, known)

    async def find(self, spec: SandboxSpec) -> Warden | None:
        """The warden of a sandbox that an earlier daemon has made; None if it is gone.

        One that cannot be reached is given a few seconds, and then killed. Raises WardenVersionError for one that this
        release cannot talk to, which is left alone.
        """
        known = await asyncio.to_thread(self._written_down, spec)
        try:
            warden = await WardenClient.connect(spec, socket_path(spec), self.lost)
            if warden is None and known is not None:
                log.warning("the socket of a warden is gone; it is told to listen anew", sandbox=spec.id)
                warden = await self._have_listen(spec, known)
        except WardenVersionError:
            raise
        except UnreachableWardenError as error:
            log.error("a warden cannot be reached; its pod ends", sandbox=spec.id, error=str(error))
            known = known or await asyncio.to_thread(self._identify, error.pid)
            warden = None
        if warden is None:
            if known is not None:
                await self._kill(spec, known)
        elif known is None or known.pid != warden.pid:
            await asyncio.to_thread(self._write_down, spec, warden.pid)
        return warden

    async def end(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """Have a sandbox's warden end with all that runs below it; it is killed if it cannot do that.

        One that only the connection to was lost is found again.
        """
        if (hanging := self._hanging.pop(spec.id, None)) is not None and hanging.lives(self._start_of):
            self._hanging[spec.id] = hanging
            return
        if warden is not None and await self._shut_down(warden):
            return
        known = await asyncio.to_thread(self._written_down, spec)
        if warden is None:
            try:
                found = await WardenClient.connect(spec, socket_path(spec), lambda _: None)
            except UnreachableWardenError as error:
                known = known or await asyncio.to_thread(self._identify, error.pid)
            else:
                if found is not None and await self._shut_down(found):
                    return
                warden = found
        if warden is not None:
            known = known or await asyncio.to_thread(self._identify, warden.pid)
        if known is not None:
            await self._kill(spec, known)

    async def unknown(
        self, runtime_directory: Path, sandboxes: Collection[str]
    ) -> AsyncIterator[tuple[SandboxSpec, Warden | None]]:
        """The wardens that listen below a directory for none of these sandboxes; None for a socket that nobody serves."""
        beginnings = {sandbox_id[:length] for sandbox_id in sandboxes for length in (16, 64)}
        for path in await asyncio.to_thread(lambda: list(runtime_directory.glob(f"*/{SOCKET_NAME}"))):
            if path.parent.name in beginnings:
                continue
            spec = SandboxSpec("", "", "", "", str(path.parent))
            warden: Warden | None = None
            sandbox_id = ""
            try:
                found = await WardenClient.connect(spec, str(path), lambda _: None)
                if found is not None:
                    warden, sandbox_id = found, found.sandbox_id
            except UnreachableWardenError as error:
                known = await asyncio.to_thread(self._identify, error.pid)
                if known is not None:
                    await self._kill(spec, known)
            yield SandboxSpec(sandbox_id, "", "", "", str(path.parent)), warden

    async def _have_listen(self, spec: SandboxSpec, known: WardenIdentity) -> WardenClient | None:
        """Tell a warden whose socket was removed; None if it does not listen by the end of its time."""
        if not known.signal(signal.SIGHUP, self._start_of):
            return None
        until = asyncio.get_running_loop().time() + _LISTEN_SECONDS
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_PAUSE)
            if (warden := await WardenClient.connect(spec, socket_path(spec), self.lost)) is not None:
                return warden
        return None

    async def _shut_down(self, warden: Warden) -> bool:
        try:
            async with asyncio.timeout(_SHUTDOWN_SECONDS):
                await warden.shutdown()
        except (TimeoutError, HostError) as error:
            log.warning("a warden does not end by itself; it is killed", pid=warden.pid, error=str(error))
            await warden.disconnect()
            return False
        return True

    async def _kill(self, spec: SandboxSpec, known: WardenIdentity) -> None:
        if not known.signal(signal.SIGKILL, self._start_of):
            return
        until = asyncio.get_running_loop().time() + _DEATH_SECONDS
        while known.lives(self._start_of):
            if asyncio.get_running_loop().time() > until:
                log.error(
                    "a killed warden hangs in the kernel, on a disk that does not answer; it ends when that does",
                    sandbox=spec.id,
                    pid=known.pid,
                )
                self._hanging[spec.id] = known
                return
            await asyncio.sleep(_PAUSE)

    # These block.

    def _written_down(self, spec: SandboxSpec) -> WardenIdentity | None:
        """The living warden that is written down."""
        if not spec.directory:
            return None
        try:
            known = identity.read(spec.directory)
        except (OSError, WireError) as error:
            log.error("it is not known which process a warden is", sandbox=spec.id, error=str(error))
            return None
        return known if known is not None and known.lives(self._start_of) else None

    def _identify(self, pid: int) -> WardenIdentity | None:
        started = self._start_of(pid) if pid else None
        return None if started is None else WardenIdentity(pid, started)

    def _write_down(self, spec: SandboxSpec, pid: int) -> None:
        known = self._identify(pid)
        if known is None:
            return  # it has ended, as its connection is about to tell
        try:
            identity.write(spec.directory, known)
        except OSError as error:
            raise HostError(
                "write down the warden of", f"sandbox {spec.id}", error.strerror or str(error), error.errno
            ) from error
