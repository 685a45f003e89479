"""Containers: create, start, stop, remove; what is true of one at any time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
import time
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import structlog

from cri import tracing
from cri.api.runtime import v1
from cri.errors import FailedPreconditionError, InternalError
from cri.rpc import messages
from cri.sandbox import container_log, record_files, stop_signals, wire
from cri.sandbox.host import (
    DisconnectedError,
    HalfUpdatedError,
    HostError,
    StartError,
    UnfitRequestError,
    UnknownContainerError,
    Warden,
)
from cri.sandbox.machine import CONTAINER_STEPS, ContainerState, check_step
from cri.sandbox.node import Node
from cri.sandbox.snapshots import NO_SPACE
from cri.sandbox.spec import ContainerSpec, Credentials, ExitRecord, Resources, Started
from cri.sandbox.stopping import Stopping, first_of
from cri.sandbox.undo import UndoStack
from cri.state import ContainerRecord
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)

KILL_PATIENCE = 10.0
"""Seconds after KILL until the host looks itself whether anything of the container is left."""

START_KILL_PATIENCE = 1.0
"""The same for what was on its way to its program: it has nothing to finish."""

RETRY_PAUSE = 0.5
RETRY_PAUSE_MAX = 60.0
"""Seconds between two attempts to give back what an ended container has; doubled from the one to the other."""

LEISURE = 0.002
"""Seconds until something is done that nobody waits for: whoever asked has the answer by then."""

LOST_EXIT_CODE = 255
"""Exit code of a container whose true one nobody could observe."""

START_ERROR_EXIT_CODE = 128

_ALIVE = (ContainerState.CREATED, ContainerState.STARTING, ContainerState.RUNNING, ContainerState.UNKNOWN)


_LIMITED = (ContainerState.CREATED, ContainerState.STARTING, ContainerState.RUNNING)
"""While it has limits that an update can change."""


class Pod(Protocol):
    """What a container knows of its sandbox."""

    warden: Warden | None

    @property
    def log_directory(self) -> str:
        """Where the pod's logs are, as its config says."""


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
        pod: Pod,
        *,
        foreign: str = "",
    ) -> None:
        self.record = record
        self.spec = spec
        self.config = config
        self.restored = False
        """Its record was lost or damaged, and what is here now is to be written down."""
        self.foreign = foreign
        """Why its record cannot be understood, if so: it is left as it is, and the container can only be ended."""
        self.ended = asyncio.Event()
        self.encoded: bytes | None = None
        """The list item, encoded; None after a change (see `cri.encode`)."""
        self.status: tuple[ContainerRecord, str, bytes] | None = None
        """Its status, encoded, with the record and the name of the image that it was made of (see `cri.statuses`)."""
        self._node = node
        self._pod = pod
        self._early_exit: ExitRecord | None = None
        self._start_failed = ""
        """Why, once that is so: it counts, and not how what may have been begun has been ended."""
        self._stopping: Stopping | None = None
        self._retry: asyncio.Task[None] | None = None
        self._retry_pause = RETRY_PAUSE
        self._telling: asyncio.Task[None] | None = None
        if self.state in (ContainerState.EXITED, ContainerState.REMOVING):
            self.ended.set()

    @classmethod
    def load(cls, node: Node, record: ContainerRecord, pod: Pod) -> Self:
        """The container of a record that an earlier daemon wrote. Raises ValueError if that cannot be understood."""
        spec = wire.loads(ContainerSpec, record.spec)
        if record.credentials is not None:
            wire.decode(Credentials, record.credentials)
        ContainerState(record.state)
        return cls(node, record, spec, messages.parsed(v1.ContainerConfig, record.config), pod)

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

    @property
    def stop_signal(self) -> str:
        """The signal that asks it to end, as its config or its image has named it; else TERM's name."""
        try:
            stop_signals.number(self.record.stop_signal, self.spec.os)
        except ValueError:  # none was named, or the record is damaged: a stop is made all the same
            return stop_signals.DEFAULT
        return self.record.stop_signal

    async def create(self) -> None:
        """CREATING to CREATED: root filesystem and limits are made. Leaves nothing behind if it fails."""
        directory = Path(self.spec.directory)
        node = self._node
        async with UndoStack(f"create container {self.id}", node.spare_descriptors, node.undo_failed) as undo:
            undo.push("record", lambda: self._node.store.follow(delete=[self.record]))
            await self._node.store.save(self.record)
            undo.push("directory", lambda: self._node.trash.take(directory))
            undo.push("container", lambda: self._node.host.remove_container(self.spec))
            with tracing.span("make root filesystem"):
                await self._node.host.create_container(self.spec, partial(self._make_directories, directory))
            await self._step(ContainerState.CREATED)

    async def start(self) -> None:
        """CREATED to RUNNING. A process that cannot be started leaves the container EXITED with reason StartError.

        STARTING is never written down: if the daemon dies meanwhile, the warden knows (see `recovery`). Whatever is raised
        on the way, STARTING is left again, and no process stays. Raises FailedPreconditionError in any other state.
        """
        if self.state is not ContainerState.CREATED:
            raise FailedPreconditionError(
                f"container {self.id} is {self.state}: only a created container can start"
            )
        if self.foreign:
            raise FailedPreconditionError(f"container {self.id} cannot start: {self.foreign}; make it anew")
        warden = self._pod.warden
        if warden is None:
            raise FailedPreconditionError(
                f"container {self.id}: its sandbox {self.spec.sandbox_id} is not ready"
            )
        self._enter(ContainerState.STARTING)
        try:
            with tracing.span("start process"):
                started = await self._start(warden)
            await self.began(started)
        except DisconnectedError:
            raise  # the daemon ends; what becomes of the process is the warden's to tell the next one
        except BaseException as error:
            # To its end, even if this task is cancelled meanwhile, or for that very reason.
            await asyncio.shield(asyncio.ensure_future(self._not_started(warden, error)))
            raise

    async def began(self, started: Started) -> None:
        """STARTING to RUNNING, as the warden tells it; not if the container has been ended meanwhile."""
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
        if self.state is ContainerState.STARTING and not self._start_failed:
            # The news overtook the answer to `start`, which is about to arrive.
            self._early_exit = record
        elif self.state in (ContainerState.STARTING, ContainerState.RUNNING, ContainerState.UNKNOWN):
            await self._exit(record)

    async def lose(
        self, why: str = "the sandbox's warden ended before it could record the exit code"
    ) -> None:
        """Take note that nobody watches the container any more: the exit record on disk is the last word, if there is one.

        `why` is what is said where there is none. No process of it is left.
        """
        if self.state not in _ALIVE:
            return
        try:
            record = await in_own_thread(wire.read_exit_record, Path(self.spec.directory))
        except (OSError, ValueError) as error:
            log.error("an exit record cannot be read", container=self.id, error=str(error))
            why, record = f"its exit record cannot be read: {error}", None
            damaged = True
        else:
            damaged = False
        state = ContainerState(self.record.state)  # as it is now: somebody else may have been quicker
        if state not in _ALIVE:
            return
        if state is ContainerState.CREATED:
            if record is None and not damaged:
                return
            self._enter(ContainerState.STARTING)  # an earlier daemon died before it could say so
        if record is not None:
            await self._exit(record)
        else:
            await self._exit(ExitRecord(self.id, LOST_EXIT_CODE, time.time_ns(), message=why), reason="Error")

    async def stop(self, grace: float, stop_signal: int) -> None:
        """RUNNING to EXITED: the stop signal, `grace` seconds of patience, then KILL to everything in the container.

        Stops that overlap become one, with the shortest grace of them. What is on its way to its program is killed at once:
        there is nothing yet that could end in peace. Succeeds at once on what does not run. Raises InternalError when a
        process cannot be killed.
        """
        if self.state not in (ContainerState.STARTING, ContainerState.RUNNING, ContainerState.UNKNOWN):
            return
        if self._stopping is None or self._stopping.is_over:
            self._stopping = Stopping(grace, self.ended)
            self._stopping.begin(self._end(self._stopping, stop_signal))
        else:
            self._stopping.hurry(grace)
        await self._stopping.join()

    async def remove(self) -> None:
        """Remove the container from any state, killing what runs; the log file stays.

        What has been said for good once its directory is out of sight: whatever its record says, a container whose directory
        lies in the trash is removed, by the next daemon if need be. So the record goes behind the caller, and what is in the
        trash stays until the record has gone.
        """
        await self.stop(0, signals.SIGKILL)
        if self.state is ContainerState.CREATED:
            await self._step(ContainerState.REMOVING)  # else it could be started without what it has lost
        elif self.state is not ContainerState.REMOVING:
            self._enter(ContainerState.REMOVING)
        doomed: Path | None = None

        def take_away() -> None:
            nonlocal doomed
            doomed = self._node.trash.out_of_sight(Path(self.spec.directory))

        await self._node.host.remove_container(self.spec, take_away)
        asyncio.get_running_loop().call_later(LEISURE, self._have_forgotten)
        deleted = self._node.store.followed(delete=[self.record], hurried=doomed is None)
        if doomed is None:
            await deleted
        else:
            deleted.add_done_callback(partial(self._record_is_gone, doomed))

    def _have_forgotten(self) -> None:
        """Tell the warden, which has nothing of the container any more but what it remembers."""

        async def tell(warden: Warden) -> None:
            try:
                await warden.forget(self.id)
            except HostError as error:
                log.debug("the warden does not forget", container=self.id, error=str(error))

        if (warden := self._pod.warden) is not None:
            self._telling = asyncio.create_task(tell(warden))

    def _record_is_gone(self, doomed: Path, deleted: asyncio.Future[bool]) -> None:
        if not deleted.cancelled() and deleted.result():
            self._node.trash.delete(doomed)

    async def update(self, resources: Resources, message: v1.LinuxContainerResources) -> None:
        """Apply new limits to a created or running container, and remember them: all of them, or none.

        One that ends meanwhile has none any more, and that is an error. Must not be called again before it is done. Raises
        FailedPreconditionError, HostError.
        """
        if self.state not in _LIMITED:
            raise FailedPreconditionError(f"container {self.id} is {self.state}: its limits cannot change")
        if self.foreign:
            raise FailedPreconditionError(f"container {self.id}: its limits cannot change: {self.foreign}")
        if self.state is ContainerState.CREATED and self._pod.warden is None:
            raise FailedPreconditionError(
                f"container {self.id}: its sandbox {self.spec.sandbox_id} is not ready, and it cannot start any more"
            )
        try:
            await self._node.host.update_container(self.spec, resources)
        except HalfUpdatedError as error:
            # What is shown is what the kernel has.
            await self._limits_are(error.changed)
            await self._check_limited(error)
            raise
        except HostError as error:
            await self._check_limited(error)
            raise
        await self._check_limited()
        linux = self.config.linux or v1.LinuxContainerConfig()
        linux.resources = message
        self.config.linux = linux
        await self._limits_are(resources)

    async def _check_limited(self, error: HostError | None = None) -> None:
        """After an update: what it may have made of a container that has ended meanwhile is given back."""
        if self.state not in _LIMITED:
            if self.state in (ContainerState.EXITED, ContainerState.REMOVING):
                await self.give_back()
            raise FailedPreconditionError(
                f"container {self.id} is {self.state}: it has ended while its limits were changed"
            ) from error

    async def _limits_are(self, resources: Resources) -> None:
        self.spec = wire.replace(self.spec, resources=wire.merged(self.spec.resources, resources))
        written: ContainerSpec | None = None
        while written is not self.spec:  # else another update has come meanwhile
            written = self.spec
            spec, config = await asyncio.to_thread(self._encode)  # of ten thousand mounts, perhaps
        if self.state in _LIMITED:
            self.record = self.record.replace(spec=spec, config=config)
            self.encoded = None
            await self._write_down()

    def _encode(self) -> tuple[str, bytes]:
        return wire.dumps(self.spec), messages.encoded(self.config)

    async def reopen_log(self) -> None:
        """Have the output go to the log's path anew. Raises FailedPreconditionError unless the container runs, HostError."""
        warden = self._pod.warden
        if self.state is not ContainerState.RUNNING or warden is None:
            raise FailedPreconditionError(
                f"container {self.id} is {self.state}: only a running container has a log open"
            )
        async with container_log.opened(self._pod.log_directory, self.spec.log_path) as descriptor:
            await warden.reopen_log(self.id, descriptor)

    def _make_directories(self, own: Path) -> None:
        own.mkdir(mode=0o700, parents=True)
        record_files.write(own, self.record)
        for mount in self.spec.mounts:
            if mount.source and not mount.tmpfs and not os.path.lexists(mount.source):
                # As containerd and CRI-O do for a hostPath of no type, so that pods which rely on it run here too.
                try:
                    Path(mount.source).mkdir(mode=0o755, parents=True, exist_ok=True)
                except OSError as error:
                    kind = HostError if error.errno in NO_SPACE else UnfitRequestError
                    subject = f"{mount.source}, to be mounted on {mount.target}"
                    raise kind("make", subject, error.strerror or str(error), error.errno) from error

    async def _start(self, warden: Warden) -> Started:
        async with container_log.opened(self._pod.log_directory, self.spec.log_path) as descriptor:
            self._check_wanted()
            started = await warden.start(self.spec, descriptor)
        if self.state is not ContainerState.STARTING:
            # Whoever ended it meanwhile may not have found the process yet.
            with contextlib.suppress(UnknownContainerError):
                await warden.kill(self.id)
            await self._host_stops()
        self._check_wanted()
        return started

    def _check_wanted(self) -> None:
        if self.state is not ContainerState.STARTING:
            raise StartError("start", f"container {self.id}", "it was stopped meanwhile")

    async def _not_started(self, warden: Warden, error: BaseException) -> None:
        """STARTING, or RUNNING if only writing that down has failed, to EXITED; whatever may run of it is killed."""
        if self.state not in (ContainerState.STARTING, ContainerState.RUNNING):
            return  # `lose` or a stop was quicker
        self._start_failed = str(error) or type(error).__name__
        log.info("a start has failed", container=self.id, error=self._start_failed)
        try:
            await self._kill(warden, START_KILL_PATIENCE)
        except Exception:
            # A process that hangs on its way in ends some time. Until then removal fails, and says why.
            log.exception("what was begun of a container does not end", container=self.id)
        if self.state in (ContainerState.STARTING, ContainerState.RUNNING):
            await self._exit(ExitRecord(self.id, START_ERROR_EXIT_CODE, time.time_ns()))

    async def _end(self, stopping: Stopping, stop_signal: int) -> None:
        """The stop itself."""
        warden = self._pod.warden
        if self.state is ContainerState.STARTING and warden is not None:
            await self._kill(warden, START_KILL_PATIENCE)
            if self.state is ContainerState.STARTING:
                self._start_failed = "it was stopped before its program had started"
                await self._exit(ExitRecord(self.id, START_ERROR_EXIT_CODE, time.time_ns()))
            return
        if warden is not None:
            await self._ask_to_end(warden, stopping, stop_signal)
        await self._kill(warden, KILL_PATIENCE)
        if not self.ended.is_set():
            await self.lose(
                "its end was not observed: it was killed by the host, as its warden did not do it"
            )

    async def _ask_to_end(self, warden: Warden, stopping: Stopping, stop_signal: int) -> None:
        """Send the stop signal, and wait for the end as long as this stop is patient."""
        if not stopping.is_patient:
            return
        try:
            await warden.signal(self.id, stop_signal)
        except DisconnectedError:
            raise
        except HostError as error:  # then the end would not be told either
            log.warning("a stop signal is not passed on", container=self.id, error=str(error))
        else:
            await stopping.wait_in_peace()

    async def _kill(self, warden: Warden | None, patience: float) -> None:
        """KILL everything in the container, by its warden or without it.

        Either its end has been told afterwards, or the host has seen that nothing of it is left. Raises InternalError.
        """
        if self.ended.is_set():
            return
        if warden is not None:
            try:
                await warden.kill(self.id)
                await first_of(self.ended, patience=patience)
            except DisconnectedError:
                raise
            except UnknownContainerError:
                log.debug("there is nothing to kill", container=self.id)
            except HostError as error:  # gone, silent, or not able to
                log.warning("a container is ended by the host", container=self.id, reason=str(error))
        if not self.ended.is_set():
            await self._host_stops()

    async def _host_stops(self) -> None:
        try:
            await self._node.host.stop_container(self.spec)
        except HostError as error:
            raise InternalError(
                f"container {self.id} does not end: {error}; look at the state of its processes with ps(1), "
                "and at the node's storage if one waits for a disk"
            ) from error

    async def _exit(self, record: ExitRecord, *, reason: str = "") -> None:
        if self._start_failed:
            record = ExitRecord(
                self.id, START_ERROR_EXIT_CODE, record.finished_at, message=self._start_failed
            )
            reason = "StartError"
        reason = reason or (
            "OOMKilled" if record.oom_killed else "Error" if record.exit_code else "Completed"
        )
        log.info("container ended", container=self.id, exit_code=record.exit_code, reason=reason)
        self._enter(
            ContainerState.EXITED,
            finished_at=record.finished_at,
            exit_code=record.exit_code,
            signal=record.signal,
            reason=reason,
            message=record.message,
        )
        self.ended.set()
        if not self.foreign:
            await self._node.store.followed(save=[self.record], hurried=False)
        await self.give_back()

    async def give_back(self) -> None:
        """Give back what a container needs no longer that has ended, or cannot start any more.

        What fails of one that has ended is tried again, less and less often.
        """
        try:
            await self._node.host.stop_container(self.spec)
        except Exception as error:
            # Whatever it was, the container has ended.
            log.warning("resources of an ended container linger", container=self.id, exc_info=error)
            self._retry = asyncio.create_task(self._give_back_later())

    async def _give_back_later(self) -> None:
        self._retry_pause = min(self._retry_pause * 2, RETRY_PAUSE_MAX)
        await asyncio.sleep(self._retry_pause)
        if self.state is ContainerState.EXITED:
            await self.give_back()

    def _enter(self, to: ContainerState, **values: object) -> None:
        """Step in memory only."""
        before = self.record.state
        check_step(CONTAINER_STEPS, f"container {self.id}", self.state, to)
        self.record = self.record.replace(state=to.value, **values)
        self.encoded = None
        self._node.witness.changed(self.record, before)

    async def _step(self, to: ContainerState, **values: object) -> None:
        self._enter(to, **values)
        if to is ContainerState.CREATED:
            await self._node.store.save(self.record)
        else:
            await self._write_down()

    async def _write_down(self) -> None:
        """What has happened stands, whether or not it can be written down now."""
        if not self.foreign:
            await self._node.store.follow(save=[self.record])
