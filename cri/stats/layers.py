"""What the writable layers of containers take.

A filesystem that keeps account itself (ZFS) is asked at the pace of the other figures. Elsewhere a layer has to be walked
through, and nobody waits for that but, for a moment, who asks about a container that has only just been started: one
walk at a time, each of which is slow on purpose, so that they take a twentieth of a processor. Each figure
has the time when its walk began.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from cri.sandbox.container import Container
from cri.sandbox.host import Host, HostError
from cri.sandbox.machine import ContainerState
from cri.sandbox.pods import Pods
from cri.sandbox.shared_work import SharedWork
from cri.sandbox.spec import DiskUsage
from cri.threads import AbandonedError

log = structlog.get_logger(__name__)

SHARE = 20
"""Walks take at most this part of one processor's time."""

FIRST_SHARE = 4
"""The same, of a walk that somebody waits for."""

STRETCH = 0.002
"""Seconds of a walk until it rests."""

AT_ONCE = 2
"""Walks at the same time that somebody waits for."""

FIRST_WALKS = 16
"""Layers that were never looked at, up to which who asks for them waits for that."""

FIRST_PATIENCE = 0.5
"""Seconds that it waits."""

_WITH_LAYER = (ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED)
"""In which a container has a layer, and not one that is being made or removed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a container's writable layer took."""

    usage: DiskUsage
    timestamp: int
    """Nanoseconds since the epoch."""


class Layers:
    """The last look at each container's layer."""

    def __init__(self, host: Host, pods: Pods, interval: float) -> None:
        """`interval`: seconds between two looks at the layer of a running container, at least."""
        self._host = host
        self._pods = pods
        self._interval = interval
        self._known: dict[str, Layer] = {}
        self._looked: dict[str, tuple[bool, float]] = {}
        """Whether a container ran when its layer was looked at last, and when that will have been long ago."""
        self._failed: set[str] = set()
        self._awaited: set[str] = set()
        """Layers that were not looked at in time for who has asked first; nobody waits for them again."""
        self._ending = threading.Event()
        self._looking: SharedWork[None] = SharedWork("layers")
        self._slots = asyncio.Semaphore(AT_ONCE)

    def of(self, container_id: str) -> Layer | None:
        """What is known of a container's layer."""
        return self._known.get(container_id)

    def total(self) -> Layer:
        """What all layers take together, as old as the oldest figure of one that may have grown since."""
        known = self._known.items()
        oldest = (layer.timestamp for one, layer in known if self._looked.get(one, (False, 0.0))[0])
        return Layer(
            DiskUsage(sum(one.usage.bytes for _, one in known), sum(one.usage.inodes for _, one in known)),
            min(oldest, default=time.time_ns()),
        )

    async def watch(self) -> None:
        """Look at layers, one after the other, again and again; ends with all walks that are under way."""
        self._ending.clear()
        try:
            while True:
                for container in list(self._pods.containers.values()):
                    if self._is_due(container):
                        pace = _Pace(SHARE, self._ending)
                        await self._look(container, pace)
                        if not self._host.snapshots.accounts:
                            await asyncio.sleep(pace.owed)
                self._forget_gone()
                await asyncio.sleep(min(self._interval, 1.0))
        finally:
            self._ending.set()

    async def first(self, containers: Sequence[Container]) -> None:
        """Wait a moment for the first look at these."""
        hopeless = self._failed | self._awaited
        new = [one for one in containers if one.id not in self._known and one.id not in hopeless]
        if new and len(new) <= FIRST_WALKS:
            looks = [asyncio.create_task(self._look_first(container)) for container in new]
            _, late = await asyncio.wait(looks, timeout=FIRST_PATIENCE)
            if late:
                self._awaited.update(one.id for one in new if one.id not in self._known)

    def _is_due(self, container: Container) -> bool:
        if container.state not in _WITH_LAYER:
            return False
        runs = container.state is ContainerState.RUNNING
        ran, until = self._looked.get(container.id, (not runs, 0.0))
        # Nobody writes to one that has ended, or was not started: what it took stays so.
        return ran != runs or (runs and until <= time.monotonic())

    async def _look_first(self, container: Container) -> None:
        async with self._slots:
            if container.id in self._known:
                return  # somebody else has waited for it
            await self._look(container, _Pace(FIRST_SHARE, self._ending))

    async def _look(self, container: Container, pace: _Pace) -> None:
        await self._looking.run(container.id, lambda: self._measure(container, pace))

    async def _measure(self, container: Container, pace: _Pace) -> None:
        runs, timestamp = container.state is ContainerState.RUNNING, time.time_ns()
        pace.begin()
        try:
            usage = await self._host.root_usage(container.spec, pace.check)
        except AbandonedError:
            return  # the daemon ends
        except (HostError, OSError) as error:
            if container.id not in self._failed and container.state in _WITH_LAYER:
                self._failed.add(container.id)
                log.warning("no figures of a writable layer", container=container.id, error=str(error))
        else:
            self._failed.discard(container.id)
            self._known[container.id] = Layer(usage, timestamp)
        self._looked[container.id] = runs, time.monotonic() + self._interval

    def _forget_gone(self) -> None:
        known = self._pods.containers.keys()
        for gone in self._looked.keys() - known:
            del self._looked[gone]
            self._known.pop(gone, None)
        self._failed &= known
        self._awaited &= known - self._known.keys()


class _Pace:
    """Makes a walk in a thread rest, so that it takes but a part of the time."""

    def __init__(self, share: int, ending: threading.Event) -> None:
        """`ending`: the walk is to be given up."""
        self._rest = share - 1
        self._ending = ending
        self._began = time.perf_counter()

    def begin(self) -> None:
        """The walk begins, or goes on."""
        self._began = time.perf_counter()

    def check(self) -> None:
        """Rest, if it is time to. Blocks. Raises AbandonedError."""
        if time.perf_counter() - self._began > STRETCH:
            if self._ending.wait(self.owed):
                raise AbandonedError
            self.begin()

    @property
    def owed(self) -> float:
        """Seconds of rest for what was walked since the last one."""
        return (time.perf_counter() - self._began) * self._rest
