"""Figures of containers and file systems, for the kubelet's eviction and `crictl stats`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import structlog

from cri import encode
from cri.api.runtime import v1
from cri.images import ImageStore
from cri.lists import Pace
from cri.sandbox.container import Container
from cri.sandbox.host import Host, HostError
from cri.sandbox.machine import ContainerState
from cri.sandbox.pods import Pods
from cri.sandbox.shared_work import SharedWork
from cri.sandbox.spec import DiskUsage, Usage

log = structlog.get_logger(__name__)

DISK_MAX_AGE = 10.0
"""Seconds that a walk over a container's files is good for: as often as containerd does it."""

AT_ONCE = 2
"""Batches of containers that are looked at at the same time, for whomever."""

BATCH = 8
"""Containers that are looked at in one go."""

Figures = tuple[str, tuple[bytes, ...]]
"""A container's id and its figures, encoded, in pieces (`encode.container_stats`)."""


class Stats:
    """Reads figures from the host; walks over file trees only when the last walk is old."""

    def __init__(self, host: Host, pods: Pods, images: ImageStore, directory: Path) -> None:
        self._host = host
        self._pods = pods
        self._images = images
        self._mountpoint = str(directory)
        self._disk: dict[str, tuple[float, DiskUsage]] = {}
        self._attributes: dict[str, bytes] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._pace = Pace()
        self._looking: SharedWork[Sequence[Figures]] = SharedWork("statistics")

    async def of(self, containers: Iterable[Container]) -> Sequence[Figures]:
        """The figures of those of the containers that run; one that ends meanwhile is left out.

        Who asks for the same containers while somebody else waits for their figures shares these.
        """
        chosen = [container for container in containers if container.state is ContainerState.RUNNING]
        key = tuple(container.id for container in chosen)
        return await self._looking.run(key, lambda: self._look(chosen))

    def image_filesystem(self) -> v1.FilesystemUsage:
        """What the unpacked images take."""
        return encode.filesystem_usage(self._images.usage(), time.time_ns(), self._mountpoint)

    def container_filesystem(self) -> v1.FilesystemUsage:
        """What the containers' writable layers took when they were last looked at."""
        known = [disk for _, disk in self._disk.values()]
        total = DiskUsage(sum(disk.bytes for disk in known), sum(disk.inodes for disk in known))
        return encode.filesystem_usage(total, time.time_ns(), self._mountpoint)

    async def _look(self, containers: Sequence[Container]) -> Sequence[Figures]:
        self._forget_gone()
        found: list[Figures | None] = [None] * len(containers)

        async def work(first: int) -> None:
            async for (place,) in self._pace.over(
                range(first * BATCH, len(containers), AT_ONCE * BATCH), some=1
            ):
                async with self._slots:
                    some = containers[place : place + BATCH]
                    found[place : place + len(some)] = await self._of(some)

        # A task for each of a thousand containers would take the loop for as long as all of them need to begin.
        try:
            async with asyncio.TaskGroup() as group:
                for first in range(min(AT_ONCE, -(-len(containers) // BATCH))):
                    group.create_task(work(first))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled on account of it
        return [item for item in found if item is not None]

    async def _of(self, containers: Sequence[Container]) -> Sequence[Figures | None]:
        usages = await self._host.container_usages([container.spec for container in containers])
        return [await self._one(*one) for one in zip(containers, usages, strict=True)]

    async def _one(self, container: Container, usage: Usage | HostError) -> Figures | None:
        try:
            if isinstance(usage, HostError):
                raise usage
            disk = await self._root_usage(container)
        except HostError as error:
            if container.state is ContainerState.RUNNING:
                log.warning("no statistics", container=container.id, error=str(error))
            return None
        attributes = self._attributes.get(container.id)
        if attributes is None:
            attributes = self._attributes[container.id] = encode.container_attributes(container)
        item = encode.container_stats(attributes, usage, disk, time.time_ns(), self._mountpoint)
        return container.id, item

    async def _root_usage(self, container: Container) -> DiskUsage:
        now = time.monotonic()
        seen = self._disk.get(container.id)
        if seen is None or now - seen[0] > DISK_MAX_AGE:
            seen = (now, await self._host.root_usage(container.spec))
            self._disk[container.id] = seen
        return seen[1]

    def _forget_gone(self) -> None:
        known: Sequence[dict[str, Any]] = (self._disk, self._attributes)
        for about in known:
            for gone in about.keys() - self._pods.containers.keys():
                del about[gone]
