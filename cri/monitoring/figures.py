"""What the node has, counted when somebody scrapes: nothing is kept up to date for it in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Gauge

from cri.images import ImageStore
from cri.metrics import Metrics
from cri.monitoring.conditions import Conditions
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pods import Pods
from cri.state import Store


class Figures:
    """Brings the gauges up to date."""

    def __init__(
        self, metrics: Metrics, *, pods: Pods, images: ImageStore, store: Store, conditions: Conditions
    ) -> None:
        self._metrics = metrics
        self._pods = pods
        self._images = images
        self._store = store
        self._conditions = conditions

    async def take(self) -> None:
        """Count. On the event loop, where nothing changes meanwhile: a tenth of a millisecond for a thousand containers."""
        for kind, found in (await self._conditions.now()).items():
            self._metrics.condition.labels(kind).set(found.ok)
        sandboxes = self._pods.sandboxes.values()
        _set(self._metrics.pods, SandboxState, (sandbox.record.state for sandbox in sandboxes))
        containers = self._pods.containers.values()
        _set(self._metrics.containers, ContainerState, (container.record.state for container in containers))
        self._metrics.wardens.set(sum(sandbox.warden is not None for sandbox in sandboxes))
        self._metrics.images.set(len(self._store.images))
        self._metrics.image_bytes.set(self._images.usage().bytes)
        self._metrics.state_writable.set(not self._store.problem)


def _set(gauge: Gauge, states: type[SandboxState | ContainerState], found: Iterable[str]) -> None:
    """Every state has a figure, so that a graph falls to 0 and does not break off."""
    counted = Counter(found)
    for state in states:
        gauge.labels(state.value).set(counted[state.value])
