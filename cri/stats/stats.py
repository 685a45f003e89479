"""What services ask about the use that containers, pods and filesystems are in."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from cri import encode
from cri.api.runtime import v1
from cri.images import ImageStore
from cri.lists import Pace
from cri.sandbox.container import Container
from cri.sandbox.host import Host
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.pods import Pods
from cri.stats import encoding
from cri.stats.encoding import Pieces
from cri.stats.layers import Layer, Layers
from cri.stats.samples import Sample
from cri.stats.sampling import FarEnds, Sampler
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)

O = TypeVar("O", PodSandbox, Container)  # noqa: E741 - an object

INTERVAL = 10.0
"""Seconds between two samples of the same, as of cAdvisor's."""


@dataclass(frozen=True, slots=True)
class ContainerFigures:
    """What a running container uses, as it was sampled last."""

    container: Container
    sample: Sample
    layer: Layer | None
    """Its writable layer; None if that was not looked at yet."""


@dataclass(frozen=True, slots=True)
class PodFigures:
    """What a READY pod uses, as it was sampled last, and its running containers."""

    pod: PodSandbox
    sample: Sample
    containers: Sequence[ContainerFigures]


@dataclass(frozen=True, slots=True)
class FilesystemRoom:
    """The filesystem with the writable layers, of statvfs(3)."""

    device: str
    """What it was mounted from."""
    bytes: int
    free_bytes: int
    """To anybody but root."""
    inodes: int
    free_inodes: int


class Stats:
    """Figures, out of memory. What was not sampled for more than an interval is sampled when it is asked for."""

    def __init__(
        self,
        host: Host,
        pods: Pods,
        images: ImageStore,
        directory: Path,
        interval: float = INTERVAL,
        far_ends: FarEnds | None = None,
        took: Callable[[float], object] = lambda _: None,
    ) -> None:
        """`directory`: where layers lie; `interval`: seconds between two samples of the same; `far_ends`: see `CniNetwork`.

        `took`: see `Sampler`.
        """
        self._host = host
        self._pods = pods
        self._images = images
        self._mountpoint = str(directory)
        self._interval = interval
        self._sampler = Sampler(host, pods, interval, far_ends, took)
        self._layers = Layers(host, pods, interval)
        self._attributes: dict[str, bytes] = {}
        self._layer_figures: dict[str, tuple[Layer, bytes]] = {}
        self._pace = Pace()
        self.room: FilesystemRoom | None = None
        """As of the last sample; None if the filesystem does not tell."""

    async def watch(self) -> None:
        """Sample everything, again and again, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watch in (self._sampler.watch, self._layers.watch, self._watch_room):
                group.create_task(self._for_ever(watch))

    async def containers(self, chosen: Sequence[Container]) -> list[ContainerFigures]:
        """The figures of those of the containers that run; one that ends meanwhile is left out."""
        running = [container for container in chosen if container.state is ContainerState.RUNNING]
        await self._sampler.refresh((), running)
        await self._layers.first(running)
        return self._figures(running)

    async def pods(self, chosen: Sequence[PodSandbox] | None = None) -> list[PodFigures]:
        """The figures of those of the pods, or of all, that are READY; one that ends meanwhile is left out."""
        asked = list(self._pods.sandboxes.values()) if chosen is None else chosen
        ready = [pod for pod in asked if pod.state is SandboxState.READY]
        running = [
            one for pod in ready for one in pod.containers.values() if one.state is ContainerState.RUNNING
        ]
        await self._sampler.refresh(ready, running)
        await self._layers.first(running)
        return [
            PodFigures(pod, sample, self._figures(pod.containers.values()))
            for pod in ready
            if pod.state is SandboxState.READY and (sample := self._sampler.of(pod.id)) is not None
        ]

    async def container_items(
        self, chosen: Sequence[Container]
    ) -> AsyncGenerator[list[tuple[str, Pieces]], None]:
        """The same, each with the container's id, encoded as an element of a list; some at a time."""
        async for some in self._pace.over(await self.containers(chosen)):
            yield [(one.container.id, encoding.container_item(self._encoded(one))) for one in some]

    async def pod_items(self, chosen: Sequence[PodSandbox]) -> AsyncGenerator[list[tuple[str, Pieces]], None]:
        """The figures of pods, each with the pod's id, encoded as an element of a list; some at a time."""
        async for some in self._pace.over(await self.pods(chosen), some=4):
            yield [(one.pod.id, self._pod_item(one)) for one in some]

    def image_filesystem(self) -> v1.FilesystemUsage:
        """What the unpacked images take: known from when they were unpacked."""
        return encoding.filesystem_usage(Layer(self._images.usage(), time.time_ns()), self._mountpoint)

    def container_filesystem(self) -> v1.FilesystemUsage:
        """What the containers' writable layers took when they were last looked at."""
        return encoding.filesystem_usage(self._layers.total(), self._mountpoint)

    def _figures(self, containers: Iterable[Container]) -> list[ContainerFigures]:
        return [
            ContainerFigures(one, sample, self._layers.of(one.id))
            for one in containers
            if one.state is ContainerState.RUNNING and (sample := self._sampler.of(one.id)) is not None
        ]

    def _pod_item(self, one: PodFigures) -> Pieces:
        attributes = self._attributes_of(one.pod, encode.sandbox_attributes)
        inside = [self._encoded(container) for container in one.containers]
        return encoding.pod_item(attributes, encoding.figures_of_pod(one.sample), inside)

    def _encoded(self, one: ContainerFigures) -> Pieces:
        attributes = self._attributes_of(one.container, encode.container_attributes)
        figures = encoding.figures_of_container(one.sample)
        if one.layer is None:
            return attributes, figures
        known = self._layer_figures.get(one.container.id)
        if known is None or known[0] is not one.layer:
            known = one.layer, encoding.figures_of_layer(one.layer, self._mountpoint)
            self._layer_figures[one.container.id] = known
        return attributes, figures, known[1]

    def _attributes_of(self, of: O, encoded: Callable[[O], bytes]) -> bytes:
        """What never changes of an object's figures."""
        known = self._attributes.get(of.id)
        if known is None:
            known = self._attributes[of.id] = encoded(of)
        return known

    def _forget_gone(self) -> None:
        known = self._pods.sandboxes.keys() | self._pods.containers.keys()
        for about in (self._attributes, self._layer_figures):
            for gone in about.keys() - known:
                del about[gone]

    async def _for_ever(self, watch: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await watch()
            except Exception:
                log.exception("statistics have stopped; they go on soon", seconds=self._interval)
            await asyncio.sleep(self._interval)

    async def _watch_room(self) -> None:
        while True:
            try:
                self.room = await in_own_thread(self._look_at_room)
            except OSError as error:
                if self.room is not None:
                    log.warning(
                        "the size of the filesystem is not known", path=self._mountpoint, error=str(error)
                    )
                self.room = None
            self._forget_gone()
            await asyncio.sleep(self._interval)

    def _look_at_room(self) -> FilesystemRoom:
        found = os.statvfs(self._mountpoint)
        block = found.f_frsize
        return FilesystemRoom(
            self._host.device_of(self._mountpoint),
            found.f_blocks * block,
            found.f_bavail * block,
            found.f_files,
            found.f_ffree,
        )
