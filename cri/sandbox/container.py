"""Containers: create, start, stop, remove; what is true of one at any time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal as signals
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import structlog

from baustelle.removal import remove_tree
from cri.api.runtime import v1
from cri.errors import FailedPreconditionError, InternalError
from cri.sandbox import wire
from cri.sandbox.host import HostError, StartError, Warden, WardenGoneError
from cri.sandbox.machine import CONTAINER_STEPS, ContainerState, check_step
from cri.sandbox.node import Node
from cri.sandbox.spec import ContainerSpec, Credentials, ExitRecord, Resources, Started
from cri.sandbox.undo import UndoStack
from cri.state import ContainerRecord
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)

KILL_PATIENCE = 30.0
"""Seconds until a container that does not end after KILL is reported as stuck (in an uninterruptible wait)."""

WARDEN_PATIENCE = 10.0
"""Seconds that a warden may take to pass a signal on."""

LOST_EXIT_CODE = 255
"""Exit code of a container whose true one nobody could observe."""

START_ERROR_EXIT_CODE = 128


class Container:
    """One container, from its first record to its removal.

    Everything here runs on the event loop; nothing takes a lock. A field is changed in memory first and written
    through before the call that changed it is answered, so that readers never wait.
    """

    def __init__(
        self,
        node: Node,
        record: ContainerRecord,
        spec: ContainerSpec,
        config: v1.ContainerConfig,
        warden: Callable[[], Warden | None],
    ) -> None:
        self.record = record
        self.spec = spec
        self.config = config
        self.ended = asyncio.Event()
        self.encoded: bytes | None = None
        """The list item, encoded; None after a change (see `cri.encode`)."""
        self._node = node
        self._warden = warden
        self._early_exit: ExitRecord | None = None
        self._stop: asyncio.Task[None] | None = None
        self._stop_deadline = 0.0
        self._stop_sooner = asyncio.Event()
        if self.state in (ContainerState.EXITED, ContainerState.REMOVING):
            self.ended.set()

    @classmethod
    def load(cls, node: Node, record: ContainerRecord, warden: Callable[[], Warden | None]) -> Self:
        """The container of a record that an earlier daemon wrote."""
        spec = wire.decode(ContainerSpec, json.loads(record.spec))
        return cls(node, record, spec, v1.ContainerConfig.parse(record.config), warden)

    @property
    def id(self) -> str:
        """The container's id: 64 hexadecimal digits."""
        return self.record.id

    @property
    def state(self) -> ContainerState:
        """Where the container is in its life."""
        return ContainerState(self.record.state)

    @property
    def credentials(self) -> Credentials | None:
        """Who the first process runs as, once it was started."""
        stored = self.record.credentials
        return None if stored is None else wire.decode(Credentials, stored)

    async def create(self) -> None:
        """CREATING to CREATED: root filesystem and limits are made. Leaves nothing behind if it fails."""
        directory = Path(self.spec.directory)
        async with UndoStack(f"create container {self.id}") as undo:
            undo.push("record", lambda: self._node.store.delete(self.record))
            await self._node.store.save(self.record)
            undo.push("directory", lambda: asyncio.to_thread(remove_tree, directory))
            await in_own_thread(self._make_directories, directory)
            undo.push("container", lambda: self._node.host.remove_container(self.spec))
            await self._node.host.create_container(self.spec)
            await self._step(ContainerState.CREATED)

    async def start(self) -> None:
        """CREATED to RUNNING. A process that cannot be started leaves the container EXITED with reason StartError.

        STARTING is never written down: if the daemon dies meanwhile, the warden knows (see `recovery`). Raises
        FailedPreconditionError in any other state, StartError with the reason otherwise.
        """
        if self.state is not ContainerState.CREATED:
            raise FailedPreconditionError(
                f"container {self.id} is {self.state}: only a created container can start"
            )
        warden = self._warden()
        if warden is None:
            raise FailedPreconditionError(
                f"container {self.id}: its sandbox {self.spec.sandbox_id} is not ready"
            )
        self._enter(ContainerState.STARTING)
        try:
            started = await warden.start(self.spec)
        except (StartError, WardenGoneError) as error:
            if ContainerState(self.record.state) is ContainerState.STARTING:  # else `lose` was quicker
                record = ExitRecord(self.id, START_ERROR_EXIT_CODE, time.time_ns(), message=str(error))
                await self._exit(record, reason="StartError")
            raise
        await self.began(started)

    async def began(self, started: Started) -> None:
        """STARTING to RUNNING, as the warden tells it; not if the warden was lost right after."""
        if self.state is not ContainerState.STARTING:
            return
        await self._step(
            ContainerState.RUNNING,
            pid=started.pid,
            started_at=started.started_at,
            credentials=wire.encode(started.credentials),
        )
        if self._early_exit is not None:
            await self._exit(self._early_exit)

    async def was_started(self, started: Started) -> None:
        """CREATED to RUNNING: an earlier daemon started it, and died before it could write that down."""
        self._enter(ContainerState.STARTING)
        await self.began(started)

    async def on_exit(self, record: ExitRecord) -> None:
        """Take note of the end that the warden observed."""
        if self.state is ContainerState.STARTING:
            # The news overtook the answer to `start`, which is about to arrive.
            self._early_exit = record
        elif self.state is ContainerState.RUNNING:
            await self._exit(record)

    async def lose(self) -> None:
        """Take note that the warden is gone: the exit record on disk is the last word, if there is one."""
        if self.state not in (ContainerState.CREATED, ContainerState.STARTING, ContainerState.RUNNING):
            return
        record = await asyncio.to_thread(wire.read_exit_record, Path(self.spec.directory))
        state = ContainerState(self.record.state)  # as it is now: somebody else may have been quicker
        if state not in (ContainerState.CREATED, ContainerState.STARTING, ContainerState.RUNNING):
            return
        if state is ContainerState.CREATED:
            if record is None:
                return
            self._enter(ContainerState.STARTING)  # an earlier daemon died before it could say so
        if record is not None:
            await self._exit(record)
        else:
            message = "the sandbox's warden ended before it could record the exit code"
            await self._exit(
                ExitRecord(self.id, LOST_EXIT_CODE, time.time_ns(), message=message), reason="Error"
            )

    async def stop(self, grace: float, stop_signal: int) -> None:
        """RUNNING to EXITED: the stop signal, `grace` seconds of patience, then KILL to everything in the container.

        Stops that overlap become one, with the shortest grace of them. Succeeds at once on what does not run.
        """
        if self.state not in (ContainerState.STARTING, ContainerState.RUNNING):
            return
        deadline = asyncio.get_running_loop().time() + max(grace, 0)
        if self._stop is None or self._stop.done():
            self._stop_deadline = deadline
            self._stop = asyncio.create_task(self._end(stop_signal))
        elif deadline < self._stop_deadline:
            self._stop_deadline = deadline
            self._stop_sooner.set()
        await asyncio.shield(self._stop)

    async def remove(self) -> None:
        """Remove the container from any state, killing what runs; the log file stays."""
        await self.stop(0, signals.SIGKILL)
        if self.state is not ContainerState.REMOVING:
            await self._step(ContainerState.REMOVING)
        if (warden := self._warden()) is not None:
            with contextlib.suppress(WardenGoneError):
                await warden.forget(self.id)
        await self._node.host.remove_container(self.spec)
        await asyncio.to_thread(remove_tree, Path(self.spec.directory))
        await self._node.store.delete(self.record)

    async def update(self, resources: Resources, message: v1.LinuxContainerResources) -> None:
        """Apply new limits to a created or running container, and remember them."""
        if self.state not in (ContainerState.CREATED, ContainerState.RUNNING):
            raise FailedPreconditionError(f"container {self.id} is {self.state}: its limits cannot change")
        await self._node.host.update_container(self.spec, resources)
        if self.state not in (ContainerState.CREATED, ContainerState.RUNNING):
            return  # it has ended or is being removed, and its record with it
        self.spec = wire.replace(self.spec, resources=wire.merged(self.spec.resources, resources))
        linux = self.config.linux or v1.LinuxContainerConfig()
        linux.resources = message
        self.config.linux = linux
        written: ContainerSpec | None = None
        while written is not self.spec:  # else another update has come meanwhile
            written = self.spec
            spec, config = await asyncio.to_thread(self._encode)  # of ten thousand mounts, perhaps
        if self.state in (ContainerState.CREATED, ContainerState.RUNNING):
            await self._write(spec=spec, config=config)

    def _encode(self) -> tuple[str, bytes]:
        return json.dumps(wire.encode(self.spec)), bytes(self.config)

    async def reopen_log(self) -> None:
        """Have the warden open the log file anew. Raises FailedPreconditionError unless the container runs."""
        warden = self._warden()
        if self.state is not ContainerState.RUNNING or warden is None:
            raise FailedPreconditionError(
                f"container {self.id} is {self.state}: only a running container has a log open"
            )
        await warden.reopen_log(self.id)

    def _make_directories(self, own: Path) -> None:
        own.mkdir(mode=0o700, parents=True)
        for mount in self.spec.mounts:
            if mount.source and not mount.tmpfs and not os.path.lexists(mount.source):
                # As containerd and CRI-O do for a hostPath of no type, so that pods which rely on it run here too.
                Path(mount.source).mkdir(mode=0o755, parents=True)

    async def _end(self, stop_signal: int) -> None:
        try:
            await self._end_with(self._warden(), stop_signal)
        except WardenGoneError:
            await self.lose()

    async def _end_with(self, warden: Warden | None, stop_signal: int) -> None:
        if warden is None:
            await self.lose()
            return
        loop = asyncio.get_running_loop()
        if self._stop_deadline > loop.time():
            await _bounded(warden.signal(self.id, stop_signal), "signal", self.id)
        while not self.ended.is_set() and (left := self._stop_deadline - loop.time()) > 0:
            self._stop_sooner.clear()
            await _first_of(self.ended, self._stop_sooner, patience=left)
        if not self.ended.is_set():
            if not await _bounded(warden.kill(self.id), "kill", self.id):
                await self._node.host.stop_container(self.spec)  # by the host's own means
            await _first_of(self.ended, patience=KILL_PATIENCE)
        if not self.ended.is_set():
            raise InternalError(
                f"container {self.id} did not end within {KILL_PATIENCE:.0f} s of KILL: a process of it hangs in the "
                "kernel; look at its state with ps(1) and at the node's storage"
            )

    async def _exit(self, record: ExitRecord, *, reason: str = "") -> None:
        reason = reason or (
            "OOMKilled" if record.oom_killed else "Error" if record.exit_code else "Completed"
        )
        log.info("container ended", container=self.id, exit_code=record.exit_code, reason=reason)
        written = self._step(
            ContainerState.EXITED,
            finished_at=record.finished_at,
            exit_code=record.exit_code,
            signal=record.signal,
            reason=reason,
            message=record.message,
        )
        try:
            await written
        finally:
            self.ended.set()
        try:
            await self._node.host.stop_container(self.spec)
        except HostError as error:
            # Removal tries again, and reconciliation after it.
            log.warning("resources of an ended container linger", container=self.id, error=str(error))

    def _enter(self, to: ContainerState, **values: object) -> None:
        """Step in memory only."""
        check_step(CONTAINER_STEPS, f"container {self.id}", self.state, to)
        self.record = self.record.replace(state=to.value, **values)
        self.encoded = None

    async def _step(self, to: ContainerState, **values: object) -> None:
        self._enter(to, **values)
        await self._node.store.save(self.record)

    async def _write(self, **values: object) -> None:
        self.record = self.record.replace(**values)
        self.encoded = None
        await self._node.store.save(self.record)


async def _bounded(call: Awaitable[None], what: str, container: str) -> bool:
    """Whether the warden did it in time; one that does not answer must not hold up a stop."""
    try:
        async with asyncio.timeout(WARDEN_PATIENCE):
            await call
    except TimeoutError:
        log.warning("the warden does not answer", call=what, container=container)
        return False
    return True


async def _first_of(*events: asyncio.Event, patience: float) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
