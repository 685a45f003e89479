"""What eviction, `kubectl top` and /metrics/cadvisor are told: the kubelet's CRI statistics provider and metrics collector.

Source: kubernetes v1.36.0, pkg/kubelet/stats/cri_stats_provider.go, pkg/kubelet/metrics/collectors/cri_metrics.go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cri.api.runtime import v1
from tests.kubelet.client import Runtime
from tests.kubelet.manager import RuntimeViolationError
from tests.kubelet.statuses import SandboxState, State


@dataclass(slots=True)
class PodFigures:
    """A pod of the summary."""

    pod: Any
    """Its PodSandboxStats."""
    containers: dict[str, Any] = field(default_factory=dict)
    """ContainerStats by name."""
    cores: dict[str, float] = field(default_factory=dict)
    """CPUs in use by container between the last two samples of the runtime's; without those that are new."""


class Statistics:
    """Asks each ten seconds."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._before: dict[str, tuple[int, int]] = {}
        """Timestamp and CPU time by container, both in nanoseconds."""
        self._cores: dict[str, float] = {}
        self._label_keys: dict[str, list[str]] = {}
        """Of each metric, as it is announced once."""

    async def summary(self) -> dict[str, PodFigures]:
        """All pods' figures by uid, strictly from the runtime (the gate PodAndContainerStatsFromCRI)."""
        containers, sandboxes = await self._running()
        answer = await self._runtime("ListPodSandboxStats", filter=v1.PodSandboxStatsFilter())
        found = {}
        for stats in answer.stats:
            if stats.attributes.id not in sandboxes:
                continue
            figures = PodFigures(stats)
            for each in stats.linux.containers:
                if each.attributes.id in containers:
                    self._add(figures, each)
            found[stats.attributes.metadata.uid] = figures
        return found

    async def containers(self) -> dict[str, Any]:
        """The figures of all running containers by id: what the summary is made of without that gate."""
        containers, _ = await self._running()
        answer = await self._runtime("ListContainerStats", filter=v1.ContainerStatsFilter())
        return {each.attributes.id: each for each in answer.stats if each.attributes.id in containers}

    async def of_pod(self, sandbox: str) -> tuple[Any, list[Any]]:
        """One pod's figures, and its containers', as resizing and `kubectl top pod` want them."""
        pod = await self._runtime("PodSandboxStats", pod_sandbox_id=sandbox)
        some = await self._runtime(
            "ListContainerStats", filter=v1.ContainerStatsFilter(pod_sandbox_id=sandbox)
        )
        return pod.stats, list(some.stats)

    async def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """What /metrics/cadvisor shows: values of each metric by the values of its labels.

        Raises RuntimeViolationError for what Prometheus would not take.
        """
        if not self._label_keys:
            announced = await self._runtime("ListMetricDescriptors")
            self._label_keys = {each.name: list(each.label_keys) for each in announced.descriptors}
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for pod in (await self._runtime("ListPodSandboxMetrics")).pod_metrics:
            for metric in [*pod.metrics, *(one for each in pod.container_metrics for one in each.metrics)]:
                keys = self._label_keys.get(metric.name)
                labels = tuple(metric.label_values)
                if keys is None or len(keys) != len(labels):
                    raise RuntimeViolationError(f"{metric.name} is announced with {keys} and has {labels}")
                values = found.setdefault(metric.name, {})
                if labels in values:
                    raise RuntimeViolationError(f"{metric.name} is there twice: {labels}")
                values[labels] = metric.value.value
        return found

    async def _running(self) -> tuple[dict[str, Any], dict[str, Any]]:
        containers = await self._runtime("ListContainers", filter=v1.ContainerFilter())
        sandboxes = await self._runtime("ListPodSandbox", filter=v1.PodSandboxFilter())
        return (
            {one.id: one for one in containers.containers if one.state == State.CONTAINER_RUNNING},
            {one.id: one for one in sandboxes.items if one.state == SandboxState.SANDBOX_READY},
        )

    def _add(self, figures: PodFigures, stats: Any) -> None:
        name, one = stats.attributes.metadata.name, stats.attributes.id
        figures.containers[name] = stats
        now = stats.cpu.timestamp, stats.cpu.usage_core_nano_seconds.value
        before = self._before.setdefault(one, now)
        if now[0] > before[0]:
            self._cores[one] = (now[1] - before[1]) / (now[0] - before[0])
            self._before[one] = now
        if one in self._cores:
            figures.cores[name] = self._cores[one]
