"""Figures of containers and file systems, for the kubelet's eviction and `crictl stats`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from cri import encode
from cri.api.runtime import v1
from cri.images import ImageStore
from cri.sandbox.container import Container
from cri.sandbox.host import Host, HostError
from cri.sandbox.machine import ContainerState
from cri.sandbox.pods import Pods
from cri.sandbox.spec import DiskUsage, Usage

log = structlog.get_logger(__name__)

DISK_MAX_AGE = 10.0
"""Seconds that a walk over a container's files is good for: as often as containerd does it."""

AT_ONCE = 8
"""Containers that are looked at at the same time."""


class Stats:
    """Reads figures from the host; walks over file trees only when the last walk is old."""

    def __init__(self, host: Host, pods: Pods, images: ImageStore, directory: Path) -> None:
        self._host = host
        self._pods = pods
        self._images = images
        self._mountpoint = str(directory)
        self._disk: dict[str, tuple[float, DiskUsage]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def of(self, containers: Iterable[Container]) -> list[v1.ContainerStats]:
        """The figures of those of the containers that run; one that ends meanwhile is left out."""
        chosen = [container for container in containers if container.state is ContainerState.RUNNING]
        found = await asyncio.gather(*(self._of(container) for container in chosen))
        return [stats for stats in found if stats is not None]

    def image_filesystem(self) -> v1.FilesystemUsage:
        """What the unpacked images take."""
        return encode.filesystem_usage(self._images.usage(), time.time_ns(), self._mountpoint)

    def container_filesystem(self) -> v1.FilesystemUsage:
        """What the containers' writable layers took when they were last looked at."""
        known = [disk for _, disk in self._disk.values()]
        total = DiskUsage(sum(disk.bytes for disk in known), sum(disk.inodes for disk in known))
        return encode.filesystem_usage(total, time.time_ns(), self._mountpoint)

    async def _of(self, container: Container) -> v1.ContainerStats | None:
        async with self._slots:
            try:
                usage: Usage = await self._host.container_usage(container.spec)
                disk = await self._root_usage(container)
            except HostError as error:
                if container.state is ContainerState.RUNNING:
                    log.warning("no statistics", container=container.id, error=str(error))
                return None
        return encode.container_stats(container, usage, disk, time.time_ns(), self._mountpoint)

    async def _root_usage(self, container: Container) -> DiskUsage:
        now = time.monotonic()
        seen = self._disk.get(container.id)
        if seen is None or now - seen[0] > DISK_MAX_AGE:
            for gone in self._disk.keys() - self._pods.containers.keys():
                del self._disk[gone]
            seen = (now, await self._host.root_usage(container.spec))
            self._disk[container.id] = seen
        return seen[1]
