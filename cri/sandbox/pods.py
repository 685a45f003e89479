"""All pods and containers of the node: names, ids, and who may do what at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import structlog

from cri import garbage, runtime_handlers
from cri.api.runtime import v1
from cri.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
)
from cri.rpc import messages
from cri.sandbox import pod_files, salvage, sharing, stop_signals, translate, wire
from cri.sandbox.container import Container
from cri.sandbox.host import Warden
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.node import Node, RunnableImage
from cri.sandbox.pod import PodSandbox
from cri.sandbox.shared_work import SharedWork
from cri.sandbox.spec import ContainerSpec, Resources
from cri.state import ContainerRecord, SandboxRecord
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)

T = TypeVar("T")

SandboxName = tuple[str, str, str, int]
"""Name, namespace, uid and attempt: together a sandbox's name."""

CREATION_PATIENCE = 60.0
"""Seconds that removal waits for creations under way."""

DISCONNECT_PATIENCE = 10.0
"""Seconds; what is not done by then is undone or finished by the next daemon, from its record."""

ContainerName = tuple[str, str, int]
"""Sandbox id, name and attempt."""


class Pods:
    """The pods of a node.

    Every call that changes something runs as shared work: it goes on when its client goes away, and the client's
    retry joins it. Nothing here waits on a lock; reading never waits at all.
    """

    def __init__(self, node: Node) -> None:
        self.sandboxes: dict[str, PodSandbox] = {}
        self.containers: dict[str, Container] = {}
        self._node = node
        self._sandbox_names: dict[SandboxName, str] = {}
        self._container_names: dict[ContainerName, str] = {}
        self.strangers: set[str] = set()
        """Sandboxes and containers that are there, are no object here, and are left alone."""
        self._making: SharedWork[str] = SharedWork("make", keep_unheard=True)
        self._changing: SharedWork[None] = SharedWork("change")

    # -- sandboxes

    async def run_sandbox(self, config: v1.PodSandboxConfig, runtime_handler: str) -> str:
        """Make a sandbox READY; its id. A retry of a call under way joins it."""
        runtime_handlers.check(runtime_handler, self._node.runtime_handlers)
        metadata = config.metadata or v1.PodSandboxMetadata()
        name = (metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
        encoded = (
            await asyncio.to_thread(messages.encoded, config)
            if translate.is_long(config)
            else messages.encoded(config)
        )
        return await self._making.run(
            name,
            lambda: self._run_sandbox(name, config, encoded, runtime_handler),
            fingerprint=(encoded, runtime_handler),
        )

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Make a sandbox NOTREADY; succeeds on what is stopped or gone."""
        sandbox = self.find_sandbox(sandbox_id)
        if sandbox is not None:
            await self._changing.run(("stop", sandbox.id), lambda: self._stop_sandbox(sandbox))

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Remove a sandbox with its containers; succeeds on what is gone."""
        sandbox = self.find_sandbox(sandbox_id)
        if sandbox is not None:
            await self._changing.run(("remove", sandbox.id), lambda: self._remove_sandbox(sandbox))

    async def update_sandbox(
        self, sandbox_id: str, resources: Resources, request: v1.UpdatePodSandboxResourcesRequest
    ) -> None:
        """Change the limits of a pod as a whole; as `update_container`."""
        sandbox = self.sandbox(sandbox_id)
        await self._changing.run(
            ("update", sandbox.id),
            lambda: sandbox.update(resources, request),
            fingerprint=(resources, messages.encoded(request)),
        )

    def find_sandbox(self, sandbox_id: str) -> PodSandbox | None:
        """The sandbox of this id, or of the only id that begins so; None if there is none."""
        return _find(self.sandboxes, sandbox_id)

    def sandbox(self, sandbox_id: str) -> PodSandbox:
        """As `find_sandbox`, but raises NotFoundError."""
        if (sandbox := self.find_sandbox(sandbox_id)) is None:
            raise NotFoundError(f"sandbox {sandbox_id!r} does not exist; `crictl pods` lists those that do")
        return sandbox

    # -- containers

    async def create_container(self, sandbox_id: str, config: v1.ContainerConfig) -> str:
        """Make a container in a READY sandbox; its id. A retry of a call under way joins it.

        A retry is known by name and attempt alone: the kubelet makes up a new path for the termination log each time.
        """
        sandbox = self.sandbox(sandbox_id)
        metadata = config.metadata or v1.ContainerMetadata()
        name = (sandbox.id, metadata.name, metadata.attempt)
        return await self._making.run(name, lambda: self._create_container(name, sandbox, config))

    async def start_container(self, container_id: str) -> None:
        """Start a created container."""
        container = self.container(container_id)
        await self._changing.run(("start", container.id), container.start)

    async def update_container(
        self, container_id: str, resources: Resources, message: v1.LinuxContainerResources
    ) -> None:
        """Change a container's limits; one update after the other, each to its end whether or not its client stays."""
        container = self.container(container_id)
        await self._changing.run(
            ("update", container.id),
            lambda: container.update(resources, message),
            fingerprint=resources,
        )

    async def stop_container(self, container_id: str, grace: float) -> None:
        """Stop a container within `grace` seconds and a little; succeeds on what has ended or is gone."""
        container = self.find_container(container_id)
        if container is not None:
            with self._node.spare_descriptors():
                await container.stop(grace, self.stop_signal(container))

    async def remove_container(self, container_id: str) -> None:
        """Remove a container, killing it if it runs; succeeds on what is gone."""
        container = self.find_container(container_id)
        if container is not None:
            await self._remove_container(container)

    def find_container(self, container_id: str) -> Container | None:
        """The container of this id, or of the only id that begins so; None if there is none."""
        return _find(self.containers, container_id)

    def container(self, container_id: str) -> Container:
        """As `find_container`, but raises NotFoundError."""
        if (container := self.find_container(container_id)) is None:
            raise NotFoundError(
                f"container {container_id!r} does not exist; `crictl ps -a` lists those that do"
            )
        return container

    def running(self, container_id: str) -> tuple[Container, Warden]:
        """A running container and its warden; raises NotFoundError or FailedPreconditionError."""
        container = self.container(container_id)
        if container.state is not ContainerState.RUNNING:
            raise FailedPreconditionError(f"container {container.id} is {container.state}, not running")
        return container, self._warden(self.sandboxes[container.spec.sandbox_id])

    def ready(self, sandbox_id: str) -> tuple[PodSandbox, Warden]:
        """A READY sandbox and its warden; raises NotFoundError or FailedPreconditionError."""
        sandbox = self.sandbox(sandbox_id)
        if sandbox.state is not SandboxState.READY:
            raise FailedPreconditionError(f"sandbox {sandbox.id} is {sandbox.state}, not ready")
        return sandbox, self._warden(sandbox)

    @staticmethod
    def _warden(sandbox: PodSandbox) -> Warden:
        if sandbox.warden is None:
            raise FailedPreconditionError(
                f"sandbox {sandbox.id}: the daemon is not connected to its warden; the daemon's log says why"
            )
        return sandbox.warden

    @staticmethod
    def stop_signal(container: Container) -> int:
        """The signal that asks the container to end: its config's, else its image's, else TERM."""
        return stop_signals.number(container.stop_signal, container.spec.os)

    # -- the node's life

    def load(self) -> list[ContainerRecord]:
        """Take the records over from the store, and what is left of damaged ones; nothing is looked at yet. Blocks.

        Returns containers whose sandbox is gone.
        """
        found = salvage.everything(self._node)
        self.strangers = found.strangers
        for sandbox in found.sandboxes:
            self.sandboxes[sandbox.id] = sandbox
            self._sandbox_names[_sandbox_name(sandbox.record)] = sandbox.id
        for container in found.containers:
            self.adopt(container)
        return found.orphans

    def adopt(self, container: Container) -> None:
        """Take over a container that an earlier daemon has made."""
        record = container.record
        self.containers[container.id] = container
        self.sandboxes[record.sandbox_id].containers[container.id] = container
        self._container_names[record.sandbox_id, record.name, record.attempt] = container.id

    def lost(self, sandbox_id: str) -> None:
        """A warden has died unasked."""
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        sandbox.warden_lost = True
        if sandbox.state is not SandboxState.READY or self._changing.busy(("stop", sandbox_id)):
            return
        task = asyncio.ensure_future(self._changing.run(("stop", sandbox_id), sandbox.lose))
        task.add_done_callback(_report)

    def drop_sandbox(self, sandbox: PodSandbox) -> None:
        """Forget a sandbox that is gone."""
        self._node.witness.gone(sandbox.record)
        self.sandboxes.pop(sandbox.id, None)
        name = _sandbox_name(sandbox.record)
        self._sandbox_names.pop(name, None)
        self._making.forget(name)

    def drop_container(self, container: Container) -> None:
        """Forget a container that is gone."""
        record = container.record
        self.containers.pop(record.id, None)
        self.sandboxes[record.sandbox_id].containers.pop(record.id, None)
        name = (record.sandbox_id, record.name, record.attempt)
        self._container_names.pop(name, None)
        self._making.forget(name)
        self._node.witness.gone(record)

    async def disconnect(self) -> None:
        """Let go of all wardens when the daemon ends; what is being made is given a moment to get done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCONNECT_PATIENCE):
                await self._making.settle()
        await asyncio.gather(*(sandbox.disconnect() for sandbox in self.sandboxes.values()))

    def visible_sandboxes(self) -> Iterator[PodSandbox]:
        """Those that a client is shown."""
        return (s for s in self.sandboxes.values() if s.state is not SandboxState.CREATING)

    def visible_containers(self) -> Iterator[Container]:
        """Those that a client is shown."""
        return (c for c in self.containers.values() if c.state is not ContainerState.CREATING)

    # -- the work itself

    async def _run_sandbox(
        self, name: SandboxName, config: v1.PodSandboxConfig, encoded: bytes, runtime_handler: str
    ) -> str:
        if (taken := self._sandbox_names.get(name)) is not None:
            raise AlreadyExistsError(
                f"sandbox name {'/'.join(map(str, name))} is taken by {taken}: remove it or raise metadata.attempt"
            )
        self._node.demand_descriptors(f"sandbox {'/'.join(map(str, name))}")
        sandbox_id = secrets.token_hex(32)

        def translated() -> PodSandbox:
            spec = translate.sandbox_spec(
                sandbox_id,
                config,
                directory=self._node.sandbox_directory(sandbox_id),
                runtime_directory=self._node.warden_directory(sandbox_id),
                features=self._node.host.features,
            )
            record = SandboxRecord(
                id=sandbox_id,
                name=name[0],
                namespace=name[1],
                uid=name[2],
                attempt=name[3],
                state=SandboxState.CREATING.value,
                runtime_handler=runtime_handler,
                config=encoded,
                created_at=time.time_ns(),
                addresses=[],
                spec=wire.dumps(spec),
            )
            return PodSandbox(self._node, record, spec, config)

        sandbox = await asyncio.to_thread(translated) if translate.is_long(config) else translated()
        self._sandbox_names[name] = sandbox_id
        self.sandboxes[sandbox_id] = sandbox
        try:
            await sandbox.run()
        except BaseException:
            if not sandbox.lingers:
                self.drop_sandbox(sandbox)
            raise
        log.info(
            "sandbox runs", sandbox=sandbox_id, name=name[0], namespace=name[1], addresses=sandbox.addresses
        )
        return sandbox_id

    async def _stop_sandbox(self, sandbox: PodSandbox) -> None:
        with self._node.spare_descriptors():
            await sandbox.stop()

    async def _remove_sandbox(self, sandbox: PodSandbox) -> None:
        await self._stop_sandbox(sandbox)
        # What was being created when the sandbox stopped being ready gets done first: half a container cannot be removed.
        try:
            async with asyncio.timeout(CREATION_PATIENCE):
                await self._making.settle(lambda name: isinstance(name, tuple) and name[0] == sandbox.id)
        except TimeoutError:
            raise InternalError(
                f"sandbox {sandbox.id}: a container of it is still being created, probably on a volume that hangs; "
                "look at the node's mounts, then try again"
            ) from None
        with self._node.spare_descriptors():
            await sandbox.remove(self._remove_container)
        self.drop_sandbox(sandbox)
        log.info("sandbox removed", sandbox=sandbox.id)

    async def _create_container(
        self, name: ContainerName, sandbox: PodSandbox, config: v1.ContainerConfig
    ) -> str:
        if (taken := self._container_names.get(name)) is not None:
            raise AlreadyExistsError(
                f"container name {name[1]} (attempt {name[2]}) of sandbox {sandbox.id} is taken by {taken}: "
                "remove it or raise metadata.attempt"
            )
        if sandbox.state is not SandboxState.READY:
            raise FailedPreconditionError(
                f"sandbox {sandbox.id} is {sandbox.state}: containers need a ready one"
            )
        if sandbox.foreign:
            raise FailedPreconditionError(
                f"sandbox {sandbox.id} takes no more containers: {sandbox.foreign}; make the pod anew"
            )
        linux = config.linux or v1.LinuxContainerConfig()
        sharing.check_target(linux.security_context, sandbox.containers)
        self._node.demand_descriptors(f"container {name[1]} of sandbox {sandbox.id}")
        image = self._node.images.runnable(config.image.image if config.image else "")
        volumes = {}
        for mount in config.mounts:
            if mount.image is not None and mount.image.image:
                mounted = self._node.images.runnable(mount.image.image)
                volumes[mount.image.image] = mounted.layers
                mount.image.image_ref = mounted.id  # which ContainerStatus is to tell
        with self._node.images.hold({*image.layers, *itertools.chain.from_iterable(volumes.values())}):
            return await self._create_from(image, volumes, name=name, sandbox=sandbox, config=config)

    async def _create_from(
        self,
        image: RunnableImage,
        volumes: Mapping[str, tuple[str, ...]],
        *,
        name: ContainerName,
        sandbox: PodSandbox,
        config: v1.ContainerConfig,
    ) -> str:
        container_id = secrets.token_hex(32)

        def translated() -> tuple[ContainerSpec, str, bytes]:
            spec = translate.container_spec(
                container_id,
                config,
                sandbox.spec,
                sandbox.config,
                directory=self._node.container_directory(container_id),
                image=image.defaults,
                layers=image.layers,
                volumes=volumes,
                system=image.os,
                pod_files=pod_files.mounts(sandbox.spec),
                features=self._node.host.features,
            )
            with garbage.paused():  # not before: a volume that hangs must not keep everybody from collecting
                return spec, wire.dumps(spec), messages.encoded(config)

        # It follows links of volumes, and a volume may hang; and a config may have ten thousand mounts.
        spec, encoded_spec, encoded = await in_own_thread(translated)
        # A number that the CRI has no name for is refused as what it says.
        own = config.stop_signal and (config.stop_signal.name or f"stop_signal {int(config.stop_signal)}")
        stop_signal = own or image.defaults.stop_signal
        record = ContainerRecord(
            id=container_id,
            sandbox_id=sandbox.id,
            name=name[1],
            attempt=name[2],
            state=ContainerState.CREATING.value,
            config=encoded,
            image_id=image.id,
            image_ref=image.reference,
            created_at=time.time_ns(),
            stop_signal=_checked_signal(stop_signal, image.os, container_id),
            log_path=spec.log_path,
            spec=encoded_spec,
        )
        container = Container(self._node, record, spec, config, sandbox)
        self._container_names[name] = container_id
        self.containers[container_id] = container
        sandbox.containers[container_id] = container
        try:
            await container.create()
        except BaseException:
            self.drop_container(container)
            raise
        return container_id

    async def _remove_container(self, container: Container) -> None:
        await self._changing.run(("remove", container.id), lambda: self._remove_container_now(container))

    async def _remove_container_now(self, container: Container) -> None:
        with self._node.spare_descriptors():
            await container.remove()
        self.drop_container(container)
        await self._node.images.collect()


def _find(items: dict[str, T], wanted: str) -> T | None:
    if (exact := items.get(wanted)) is not None or not wanted:
        return exact
    matches = [item for item_id, item in items.items() if item_id.startswith(wanted)]
    if len(matches) > 1:
        raise InvalidArgumentError(
            f"id {wanted!r} is ambiguous: {len(matches)} ids begin so; give more digits"
        )
    return matches[0] if matches else None


def _sandbox_name(record: SandboxRecord) -> SandboxName:
    return record.name, record.namespace, record.uid, record.attempt


def _checked_signal(name: str, system: str, container_id: str) -> str:
    if name:
        try:
            stop_signals.number(name, system)
        except ValueError as error:
            raise InvalidArgumentError(f"container {container_id}: stop signal {name!r}: {error}") from error
    return name


def _report(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a lost sandbox could not be cleaned up", error=str(error))
