"""Pod sandboxes: run, stop, remove; what is true of one at any time."""

from __future__ import annotations

import asyncio
import contextvars
import signal as signals
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Self

import structlog

from cri import tracing
from cri.api.runtime import v1
from cri.errors import FailedPreconditionError
from cri.rpc import messages
from cri.sandbox import pod_files, record_files, wire
from cri.sandbox.container import Container
from cri.sandbox.host import HalfUpdatedError, HostError, Warden, WardenGoneError
from cri.sandbox.machine import SANDBOX_STEPS, ContainerState, SandboxState, check_step
from cri.sandbox.node import Node
from cri.sandbox.spec import PodAddresses, Resources, SandboxSpec, Sharing
from cri.sandbox.undo import UndoStack
from cri.state import SandboxRecord
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)


class PodSandbox:
    """One pod sandbox, from its first record to its removal, with its containers."""

    def __init__(
        self,
        node: Node,
        record: SandboxRecord,
        spec: SandboxSpec,
        config: v1.PodSandboxConfig,
        *,
        foreign: str = "",
    ) -> None:
        self.record = record
        self.spec = spec
        self.config = config
        self.restored = False
        """Its record was lost or damaged, and what is here now is to be written down."""
        self.foreign = foreign
        """Why its record cannot be understood, if so: it is left as it is, and the sandbox can only be ended."""
        self.containers: dict[str, Container] = {}
        self.warden: Warden | None = None
        self.warden_lost = False
        """The warden has died unasked."""
        self.lingers = False
        """It could not be run, and not be undone either: it is the client's to stop and to remove."""
        self.encoded: bytes | None = None
        """The list item, encoded; None after a change (see `cri.encode`)."""
        self.status: tuple[SandboxRecord, bytes] | None = None
        """Its status, encoded, with the record that it was made of (see `cri.statuses`)."""
        self._node = node
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, node: Node, record: SandboxRecord) -> Self:
        """The sandbox of a record that an earlier daemon wrote. Raises ValueError if that cannot be understood."""
        spec = wire.loads(SandboxSpec, record.spec)
        SandboxState(record.state)
        return cls(node, record, spec, messages.parsed(v1.PodSandboxConfig, record.config))

    @property
    def id(self) -> str:
        """The sandbox's id: 64 hexadecimal digits."""
        return self.record.id

    @property
    def state(self) -> SandboxState:
        """Where the sandbox is in its life."""
        return SandboxState(self.record.state)

    @property
    def addresses(self) -> list[str]:
        """The pod's IP addresses, the primary first; none with the host's network."""
        return list(self.record.addresses)

    @property
    def log_directory(self) -> str:
        """Where the pod's logs are, as its config says."""
        return self.config.log_directory

    async def run(self) -> None:
        """CREATING to READY: jail or namespaces, warden, network.

        Leaves nothing behind if it fails; or, where it cannot be taken back, itself, NOTREADY.
        """
        node = self._node
        directory = Path(self.spec.directory)
        async with UndoStack(f"run sandbox {self.id}", node.spare_descriptors, node.undo_failed) as undo:
            undo.push("record and directory", self._forget)
            await node.store.save(self.record)
            with tracing.span("write files"):
                await in_own_thread(self._write_files, directory)  # the logs may have a disk of their own
            undo.push("sandbox", self._take_back)
            with tracing.span("start warden"):
                self.adopt(await node.host.create_sandbox(self.spec))
            assert self.warden is not None
            given = PodAddresses(())
            if self.spec.namespaces.network is not Sharing.NODE:
                with tracing.span("attach network"):
                    given = await node.network.attach(self.spec, self.warden)
                    await node.host.network_attached(self.spec, self.warden)
                with tracing.span("write addresses"):
                    await asyncio.to_thread(self._write_addresses, directory, given)
            if self.warden_lost:
                raise WardenGoneError(
                    "run", f"sandbox {self.id}", "its warden died right after it was started"
                )
            with tracing.span("become ready"):
                await self._step(SandboxState.READY, addresses=list(given.addresses))

    def adopt(self, warden: Warden) -> None:
        """Take over the warden: one just started, or one found again."""
        self.warden = warden
        # In a context of its own: what happens from now on is not the doing of the call that made the sandbox.
        self._watch = asyncio.create_task(
            self._consume_exits(warden), name=f"exits of {self.id}", context=contextvars.Context()
        )

    async def stop(self) -> None:
        """READY to NOTREADY: every container is killed, network and processes are given back. May be repeated."""
        stopping = [container.stop(0, signals.SIGKILL) for container in self.containers.values()]
        with tracing.span("stop containers", count=len(stopping)):
            failures = await asyncio.gather(*stopping, return_exceptions=True)
        if self.spec.namespaces.network is not Sharing.NODE:
            with tracing.span("detach network"):
                await self._node.network.detach(self.id)
        with tracing.span("end warden"):
            # Whatever a container's own stop has failed at, this ends all that runs in the pod, or says why it cannot.
            await self._node.host.stop_sandbox(self.spec, self.warden)
            await self._release_warden()
        await _all(container.lose() for container in self.containers.values())
        # What was made and never started cannot start any more; on FreeBSD its mounts are the node's.
        unstarted = [one for one in self.containers.values() if one.state is ContainerState.CREATED]
        await _all(container.give_back() for container in unstarted)
        for failure in filter(None, failures):
            log.warning("a container was ended with its sandbox", sandbox=self.id, error=str(failure))
        if self.state is SandboxState.READY:
            await self._step(SandboxState.NOTREADY, addresses=[])

    async def remove(self, remove_container: Callable[[Container], Awaitable[None]]) -> None:
        """Remove the sandbox and its containers from any state. May be repeated."""
        await self.stop()
        if self.state is not SandboxState.REMOVING:
            await self._step(SandboxState.REMOVING)
        await _all(remove_container(container) for container in list(self.containers.values()))
        await self._node.host.remove_sandbox(self.spec)
        await self._node.trash.take(Path(self.spec.directory))
        await self._node.store.follow(delete=[self.record])

    async def update(self, resources: Resources, request: v1.UpdatePodSandboxResourcesRequest) -> None:
        """Apply new limits to the pod as a whole, and remember them: all of them, or none.

        Must not be called again before it is done. Raises FailedPreconditionError if the sandbox is not READY, or is not any
        more; HostError.
        """
        self._check_limited()
        try:
            await self._node.host.update_sandbox(self.spec, resources)
        except HalfUpdatedError as error:
            await self._check_still_limited(error)
            await self._limits_are(error.changed)  # what the kernel has
            raise
        except HostError as error:
            await self._check_still_limited(error)
            raise
        await self._check_still_limited()
        linux = self.config.linux or v1.LinuxPodSandboxConfig()
        linux.overhead = request.overhead or linux.overhead
        linux.resources = request.resources or linux.resources
        self.config.linux = linux
        await self._limits_are(resources)

    def _check_limited(self, why: str = "its limits cannot change", cause: Exception | None = None) -> None:
        if self.state is not SandboxState.READY:
            raise FailedPreconditionError(f"sandbox {self.id} is {self.state}: {why}") from cause
        if self.foreign:
            raise FailedPreconditionError(f"sandbox {self.id}: its limits cannot change: {self.foreign}")

    async def _check_still_limited(self, error: HostError | None = None) -> None:
        """After an update: what it may have made for a pod that was stopped meanwhile is given back."""
        if self.state is not SandboxState.READY:
            await self._node.host.stop_sandbox(self.spec, self.warden)
        self._check_limited("it was stopped while its limits were changed", error)

    async def _limits_are(self, resources: Resources) -> None:
        limits = wire.merged(self.spec.resources or Resources(), resources)
        self.spec = wire.replace(self.spec, resources=limits)
        spec, config = await asyncio.to_thread(self._encode)  # of ten thousand annotations, perhaps
        self.record = self.record.replace(spec=spec, config=config)
        self.encoded = None
        if self.state is not SandboxState.REMOVING:
            await self._node.store.follow(save=[self.record])

    def _encode(self) -> tuple[str, bytes]:
        return wire.dumps(self.spec), messages.encoded(self.config)

    async def lose(self) -> None:
        """Take note that the warden has died: the sandbox is not ready any more, its containers have ended.

        That is so whether or not its resources can be given back now; StopPodSandbox tries again.
        """
        log.warning("the sandbox's warden is gone", sandbox=self.id)
        await self._step(SandboxState.NOTREADY, addresses=[])
        try:
            await _all(container.lose() for container in self.containers.values())
            await self.stop()
        except Exception:
            log.exception("resources of a lost sandbox linger", sandbox=self.id)

    async def give_up(self) -> None:
        """To NOTREADY: what was begun can be neither finished nor undone now.

        The client sees it, and removes it when that can be done.
        """
        if self.state in (SandboxState.CREATING, SandboxState.READY):
            await self._step(SandboxState.NOTREADY, addresses=[])

    async def undo_creation(self) -> None:
        """Remove what an earlier daemon began and could not finish."""
        await self._node.network.detach(self.id)
        await self._give_back()
        await self._node.trash.take(Path(self.spec.directory))
        await self._node.store.follow(delete=[self.record])

    async def disconnect(self) -> None:
        """Let go of the warden, which goes on."""
        if self._watch is not None:
            self._watch.cancel()
        if self.warden is not None:
            await self.warden.disconnect()

    async def _consume_exits(self, warden: Warden) -> None:
        structlog.contextvars.bind_contextvars(sandbox=self.id)
        async for record in warden.exits():
            if (container := self.containers.get(record.container_id)) is not None:
                try:
                    await container.on_exit(record)
                except Exception:
                    # One container's trouble must not hide the ends of the others.
                    log.exception("exit not recorded", container=record.container_id)

    async def _take_back(self) -> None:
        """The network first, and if that fails, nothing else: a jail must not end with an interface inside."""
        self.lingers = True
        if self.spec.namespaces.network is not Sharing.NODE:
            await self._node.network.detach(self.id)
        await self._give_back()
        self.lingers = False

    async def _forget(self) -> None:
        if self.lingers:
            await self.give_up()
            return
        await self._node.trash.take(Path(self.spec.directory))
        await self._node.store.follow(delete=[self.record])

    async def _give_back(self) -> None:
        await self._node.host.stop_sandbox(self.spec, self.warden)
        await self._release_warden()
        await self._node.host.remove_sandbox(self.spec)

    async def _release_warden(self) -> None:
        warden, self.warden = self.warden, None
        if warden is not None:
            await warden.disconnect()
        watch, self._watch = self._watch, None
        if watch is not None and watch is not asyncio.current_task():
            # The last exits are in the queue already; the watch ends when it has handed them on.
            await asyncio.wait([watch], timeout=5)
            watch.cancel()

    def _write_files(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        record_files.write(directory, self.record)
        if self.config.log_directory:
            Path(self.config.log_directory).mkdir(mode=0o755, parents=True, exist_ok=True)
        pod_files.write(self.spec, self.config.dns_config, socket.gethostname())

    def _write_addresses(self, directory: Path, given: PodAddresses) -> None:
        pod_files.write_addresses(self.spec, self.config.dns_config, given)
        ready = self.record.replace(state=SandboxState.READY.value, addresses=list(given.addresses))
        record_files.write(directory, ready)

    async def _step(self, to: SandboxState, **values: object) -> None:
        before = self.record.state
        check_step(SANDBOX_STEPS, f"sandbox {self.id}", self.state, to)
        self.record = self.record.replace(state=to.value, **values)
        self.encoded = None
        self._node.witness.changed(self.record, before)
        if to is SandboxState.READY:
            await self._node.store.save(self.record)
        elif not self.foreign:
            await self._node.store.follow(save=[self.record])


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Let every call run to its end, then raise the first error."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
