"""What every host does with its wardens: end one that may not answer, and find those that no record names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Protocol

from cri.sandbox.host import HostError, Warden
from cri.sandbox.spec import SandboxSpec
from cri.sandbox.warden.client import WardenClient
from cri.sandbox.warden.supervisor import SOCKET_NAME, socket_path

_SHUTDOWN_SECONDS = 15.0


class WardenSpawner(Protocol):
    """Where a host gets its wardens from: `spawning.Spawner`."""

    def start(self) -> None:
        """Get ready. Blocks for a moment."""

    async def spawn(self, spec: SandboxSpec, lost: Callable[[str], None]) -> Warden:
        """The warden of a new sandbox. Raises HostError."""

    def close(self) -> None:
        """End; wardens live on. Blocks for a moment."""


async def end(spec: SandboxSpec, warden: Warden | None) -> None:
    """Have a sandbox's warden end with all that runs below it; it is killed if it cannot do that.

    One that only the connection to was lost is found again by its socket.
    """
    if warden is not None:
        await _end(warden)
    survivor = await WardenClient.connect(spec, socket_path(spec), lambda _: None)
    if survivor is not None:
        await _end(survivor)


async def _end(warden: Warden) -> None:
    try:
        async with asyncio.timeout(_SHUTDOWN_SECONDS):
            await warden.shutdown()
    except (TimeoutError, HostError):
        await warden.disconnect()
        with contextlib.suppress(ProcessLookupError):
            os.kill(warden.pid, signal.SIGKILL)


async def unknown(
    runtime_directory: Path, sandboxes: Collection[str]
) -> AsyncIterator[tuple[SandboxSpec, Warden | None]]:
    """The wardens that listen below a directory for none of these sandboxes; None for a socket that nobody serves."""
    for path in await asyncio.to_thread(lambda: list(runtime_directory.glob(f"*/{SOCKET_NAME}"))):
        if any(sandbox_id.startswith(path.parent.name) for sandbox_id in sandboxes):
            continue
        spec = SandboxSpec("", "", "", "", str(path.parent))
        warden = await WardenClient.connect(spec, str(path), lambda _: None)
        yield SandboxSpec(warden.sandbox_id if warden else "", "", "", "", str(path.parent)), warden
