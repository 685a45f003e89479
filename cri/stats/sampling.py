"""Readings of all that runs, at a steady pace, and of what somebody asks for in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from cri.sandbox.container import Container
from cri.sandbox.host import Host, HostError, Measured
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.pods import Pods
from cri.sandbox.usage import Usage
from cri.stats import samples
from cri.stats.samples import Sample

log = structlog.get_logger(__name__)

BATCH = 16
"""Pods and containers that are read in one visit to a thread, or one pod: some milliseconds."""

AT_ONCE = 2
"""Batches that are read at the same time, for whomever."""

PATIENCE = 2.0
"""Seconds that who asks waits for a reading; then what there is must do."""

STALE = 1.25
"""Intervals after which a reading is too old to be told: the next one has been late."""

SOON = 0.5
"""Seconds after a question until everything is read again: crictl asks twice, a second apart, to see two readings."""

YOUNG = 3.0
"""Intervals for which a container's first reading tells how fast it has been since its start."""


FarEnds = Callable[[Collection[str]], Awaitable[Mapping[str, Mapping[str, str]]]]
"""Tells of the interfaces of pods by their other ends (`CniNetwork.far_ends`)."""


class Sampler:
    """The last reading of each pod and container."""

    def __init__(
        self,
        host: Host,
        pods: Pods,
        interval: float,
        far_ends: FarEnds | None = None,
        took: Callable[[float], object] = lambda _: None,
    ) -> None:
        """`interval`: seconds between two readings of the same; `far_ends`: see `CniNetwork`.

        `took` is told how many seconds each pass over all that runs has taken, its rests included.
        """
        self._took = took
        self._host = host
        self._pods = pods
        self._far_ends = far_ends if host.counts_at_far_ends else None
        self._interval = interval
        self._samples: dict[str, Sample] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._asked = asyncio.Event()
        """Somebody has asked since the last pass began."""
        self._failed: set[str] = set()
        """Those that could not be read the last time, which the log has heard of."""
        self._slots = asyncio.Semaphore(AT_ONCE)

    def of(self, object_id: str) -> Sample | None:
        """The last reading of a pod or container."""
        return self._samples.get(object_id)

    async def watch(self) -> None:
        """Read everything, again and again; SOON, if somebody has asked."""
        while True:
            began = time.monotonic()
            self._asked.clear()
            await self.read_all()
            took = time.monotonic() - began
            self._took(took)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(self._interval - took, self._interval / 10)):
                    await self._asked.wait()
                    await asyncio.sleep(SOON)

    async def read_all(self) -> None:
        """Read everything that runs, and forget what does not; at most half of the time is taken by it."""
        for batch in _batches(self._measured(list(self._pods.sandboxes.values()))):
            began = time.monotonic()
            task = self._begin(batch)
            await asyncio.wait([task])
            if (error := task.exception()) is not None:
                log.error("some pods could not be measured; that is tried again", exc_info=error)
            await asyncio.sleep(time.monotonic() - began)
        known = self._pods.sandboxes.keys() | self._pods.containers.keys()
        for gone in self._samples.keys() - known:
            del self._samples[gone]
        self._failed &= known

    async def refresh(self, pods: Sequence[PodSandbox], containers: Sequence[Container]) -> None:
        """See that there are recent readings of these; what somebody else waits for is shared."""
        oldest = time.monotonic() - STALE * self._interval
        if pods or containers:
            self._asked.set()
        wanted: dict[str, list[Container]] = {}
        waiting: set[asyncio.Task[None]] = set()
        old_pods = [pod for pod in pods if self._is_old(pod.id, oldest, waiting)]
        for container in containers:
            if self._is_old(container.id, oldest, waiting):
                wanted.setdefault(container.record.sandbox_id, []).append(container)
        for pod in old_pods:
            wanted.pop(pod.id, None)
        measured = [*self._measured(old_pods), *self._parts(wanted)]
        waiting |= {self._begin(batch) for batch in _batches(measured)}
        if waiting:
            done, late = await asyncio.wait(waiting, timeout=PATIENCE)
            if late:
                log.warning("what runs is measured too slowly; old figures are given", seconds=PATIENCE)
            for task in done:
                task.result()

    def _is_old(self, object_id: str, oldest: float, waiting: set[asyncio.Task[None]]) -> bool:
        """Whether something has to be read now; if that is under way already, `waiting` is told."""
        sample = self._samples.get(object_id)
        if sample is not None and sample.taken >= oldest:
            return False
        if (task := self._under_way.get(object_id)) is None:
            return True
        waiting.add(task)
        return False

    def _measured(self, pods: Sequence[PodSandbox]) -> list[Measured]:
        """Pods as a whole."""
        # One that is stopped may have left its group to a successor: the kubelet makes a pod anew in the same one.
        ready = (pod for pod in self._pods.sandboxes.values() if pod.state is SandboxState.READY)
        parents = Counter(pod.spec.limits_parent for pod in ready)
        return [
            Measured(
                pod.spec,
                pod.warden,
                [one.spec for one in pod.containers.values() if one.state is ContainerState.RUNNING],
                alone=not pod.spec.limits_parent or parents[pod.spec.limits_parent] == 1,
            )
            for pod in pods
            if pod.state is SandboxState.READY
        ]

    def _parts(self, wanted: Mapping[str, Sequence[Container]]) -> list[Measured]:
        """Some containers of pods."""
        found = []
        for sandbox_id, containers in wanted.items():
            if (pod := self._pods.sandboxes.get(sandbox_id)) is not None:
                specs = [container.spec for container in containers]
                found.append(Measured(pod.spec, pod.warden, specs, itself=False))
        return found

    def _begin(self, batch: Sequence[Measured]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._read(batch), name="measure")
        ids = list(_ids(batch))
        self._under_way |= dict.fromkeys(ids, task)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # whoever waits is told; nobody may
            for one in ids:
                if self._under_way.get(one) is task:
                    del self._under_way[one]

        task.add_done_callback(ended)
        return task

    async def _read(self, batch: Sequence[Measured]) -> None:
        async with self._slots:
            if self._far_ends is not None:
                ends = await self._far_ends([pod.sandbox.id for pod in batch if pod.itself])
                batch = [replace(pod, interfaces=ends.get(pod.sandbox.id, {})) for pod in batch]
            began = time.monotonic()
            found = await self._host.usages(batch)
            ended, clock = time.monotonic(), time.time_ns()
        for object_id, usage in found.items():
            if isinstance(usage, HostError):
                self._could_not(object_id, usage)
            elif self._runs(object_id):
                # Clocks are set; so the interval is told by one that is not.
                taken = min(max(ended - (clock - usage.timestamp) / 1e9, began), ended)
                self._keep(object_id, usage, taken)

    def _keep(self, object_id: str, usage: Usage, taken: float) -> None:
        self._failed.discard(object_id)
        before = self._samples.get(object_id)
        if before is None:
            self._samples[object_id] = samples.first(usage, taken, self._age(object_id, usage))
        elif before.taken < taken:
            self._samples[object_id] = samples.following(before, usage, taken)

    def _age(self, object_id: str, usage: Usage) -> float | None:
        """How long a container has run, if that is not long."""
        container = self._pods.containers.get(object_id)
        if container is None or not container.record.started_at:
            return None
        age = (usage.timestamp - container.record.started_at) / 1e9
        return age if 0 < age < YOUNG * self._interval else None

    def _could_not(self, object_id: str, error: HostError) -> None:
        self._samples.pop(object_id, None)
        if self._runs(object_id) and object_id not in self._failed:
            self._failed.add(object_id)
            log.warning("no statistics", id=object_id, error=str(error))

    def _runs(self, object_id: str) -> bool:
        container = self._pods.containers.get(object_id)
        if container is not None:
            return container.state is ContainerState.RUNNING
        pod = self._pods.sandboxes.get(object_id)
        return pod is not None and pod.state is SandboxState.READY


def _ids(batch: Iterable[Measured]) -> Iterable[str]:
    for pod in batch:
        if pod.itself:
            yield pod.sandbox.id
        yield from (container.id for container in pod.containers)


def _batches(measured: Sequence[Measured]) -> Iterable[list[Measured]]:
    batch: list[Measured] = []
    size = 0
    for pod in measured:
        count = len(pod.containers) + pod.itself
        if batch and size + count > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(pod)
        size += count
    if batch:
        yield batch
