"""The metrics of all pods are labelled as their readers expect, encoded once per sample, and let others in."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from cri.api.runtime import v1
from cri.errors import ResourceExhaustedError
from cri.pod_metrics import PodMetrics, encoding, metrics
from cri.pod_metrics.metric import BASE_LABELS
from cri.pod_metrics.table import TABLE
from cri.rpc import descriptors
from cri.sandbox.spec import DiskUsage, Resources
from cri.sandbox.usage import CpuUsage, InterfaceUsage, MemoryUsage, Usage
from cri.stats import ContainerFigures, FilesystemRoom, Layer, PodFigures
from cri.stats import samples as stats_samples

LIST = descriptors.strict_class("runtime.v1.ListPodSandboxMetricsResponse")
KEYS = {metric.name: metric.labels for metric in TABLE}
NOW = 1_700_000_000


def sample(cpu: int = 5, **fields):
    usage = Usage(timestamp=time.time_ns(), cpu=CpuUsage(total=cpu * 10**9), **fields)
    return stats_samples.first(usage, 0.0, None)


def container(name: str, cpu: int = 5, **config) -> ContainerFigures:
    made = v1.ContainerConfig(metadata=v1.ContainerMetadata(name=f"name of {name}"), **config)
    there = SimpleNamespace(
        id=name,
        config=made,
        record=SimpleNamespace(started_at=NOW * 10**9),
        spec=SimpleNamespace(resources=Resources(memory_limit=1000)),
    )
    return ContainerFigures(there, sample(cpu), Layer(DiskUsage(4096, 7), NOW * 10**9))


def pod(name: str, *containers: ContainerFigures) -> PodFigures:
    there = SimpleNamespace(
        id=name,
        record=SimpleNamespace(created_at=NOW * 10**9),
        spec=SimpleNamespace(name=f"name of {name}", namespace="space"),
    )
    taken = sample(9, memory=MemoryUsage(rss=8), interfaces=(InterfaceUsage("eth0", received_bytes=3),))
    return PodFigures(there, taken, containers)


class Stats:
    """What is sampled; a test changes it."""

    def __init__(self, *pods: PodFigures) -> None:
        self.there = list(pods)
        self.room = FilesystemRoom("/dev/vda1", 1000, 900, 100, 80)

    async def pods(self) -> list[PodFigures]:
        return list(self.there)


async def listed(pod_metrics: PodMetrics):
    return LIST.FromString(
        b"".join([item async for items in pod_metrics.items() for item in items])
    ).pod_metrics


def series(found) -> dict[str, list[tuple[dict[str, str], int]]]:
    by_name: dict[str, list[tuple[dict[str, str], int]]] = {}
    for metric in found:
        pairs = dict(zip(KEYS[metric.name], metric.label_values, strict=True))
        by_name.setdefault(metric.name, []).append((pairs, metric.value.value))
    return by_name


async def test_the_labels_are_those_that_queries_choose_by() -> None:
    image = v1.ImageSpec(image="sha256:1", user_specified_image="docker.io/library/app:1")
    stats = Stats(pod("p1", container("c1", image=image), container("c2")), pod("p2"))
    first, second = await listed(PodMetrics(stats))
    assert (first.pod_sandbox_id, second.pod_sandbox_id) == ("p1", "p2")
    assert [one.container_id for one in first.container_metrics] == ["c1", "c2"]
    assert not second.container_metrics

    inner = series(first.container_metrics[0].metrics)
    base = {
        "container": "name of c1",
        "id": "c1",
        "image": "docker.io/library/app:1",
        "name": "c1",
        "namespace": "space",
        "pod": "name of p1",
    }
    assert inner["container_cpu_usage_seconds_total"] == [(base | {"cpu": "total"}, 5)]
    assert inner["container_spec_memory_limit_bytes"] == [(base, 1000)]
    assert inner["container_start_time_seconds"] == [(base, NOW)]
    assert inner["container_fs_usage_bytes"] == [(base | {"device": "/dev/vda1"}, 4096)]
    assert inner["container_fs_limit_bytes"] == [(base | {"device": "/dev/vda1"}, 1000)]
    assert inner["container_fs_inodes_free"] == [(base | {"device": "/dev/vda1"}, 80)]
    assert "container_network_receive_bytes_total" not in inner
    other = series(first.container_metrics[1].metrics)
    assert other["container_memory_rss"][0][0]["image"] == ""

    outer = series(first.metrics)
    of_pod = dict.fromkeys(BASE_LABELS, "") | {"id": "p1", "namespace": "space", "pod": "name of p1"}
    assert outer["container_network_receive_bytes_total"] == [(of_pod | {"interface": "eth0"}, 3)]
    assert outer["container_memory_rss"] == [(of_pod, 8)]
    assert not [name for name in outer if name.startswith(("container_fs_", "container_spec_"))]


async def test_what_has_no_figures_yet_has_what_is_known() -> None:
    figures = container("c")
    stats = Stats(pod("p", ContainerFigures(figures.container, figures.sample, None)))
    stats.room = None
    (found,) = await listed(PodMetrics(stats))
    inner = series(found.container_metrics[0].metrics)
    assert inner["container_cpu_usage_seconds_total"]
    assert not [name for name in inner if name.startswith("container_fs_")]


async def test_a_sample_is_encoded_once(monkeypatch) -> None:
    made: list[object] = []

    def counted(encode):
        def call(subject, labels):
            made.append(subject.usage)
            return encode(subject, labels)

        return call

    monkeypatch.setattr(encoding, "sample_metrics", counted(encoding.sample_metrics))
    stats = Stats(pod("p", container("c1"), container("c2")))
    pod_metrics = PodMetrics(stats)
    (before,) = await listed(pod_metrics)
    assert await listed(pod_metrics) == [before]
    assert len(made) == 3
    stats.there = [pod("p", container("c1", cpu=6), *stats.there[0].containers[1:])]
    (after,) = await listed(pod_metrics)
    assert len(made) == 5, "the pod and the one container of which there is a new sample"
    assert series(after.container_metrics[0].metrics)["container_cpu_usage_seconds_total"][0][1] == 6
    assert after.container_metrics[1] == before.container_metrics[1]


async def test_limits_are_told_as_they_are_without_a_new_sample() -> None:
    stats = Stats(pod("p", container("c")))
    pod_metrics = PodMetrics(stats)
    await listed(pod_metrics)
    stats.there[0].containers[0].container.spec.resources = Resources(memory_limit=2000)
    (found,) = await listed(pod_metrics)
    limit = next(
        one for one in found.container_metrics[0].metrics if one.name == "container_spec_memory_limit_bytes"
    )
    assert (limit.value.value, limit.timestamp) == (2000, 0)


async def test_others_are_let_in_between_containers() -> None:
    """Also those of one pod: a walk is a turn of the loop for every few of them."""
    stats = Stats(pod("p", *[container(f"c{number}") for number in range(300)]))
    task = asyncio.create_task(listed(PodMetrics(stats)))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    # A slice of a quarter of a millisecond has room for few of them on whatever machine.
    assert turns > 20
    assert len((await task)[0].container_metrics) == 300


async def test_what_is_gone_is_forgotten_and_all_when_nobody_asks(monkeypatch) -> None:
    stats = Stats(pod("p", container("c1"), container("c2")))
    pod_metrics = PodMetrics(stats)
    await listed(pod_metrics)
    kept = pod_metrics._kept
    assert set(kept) == {"p", "c1", "c2"}
    stats.there = [pod("p", container("c2"))]
    await listed(pod_metrics)
    assert set(kept) == {"p", "c2"}
    monkeypatch.setattr(metrics, "KEPT_FOR", 0.01)
    await listed(pod_metrics)
    await asyncio.sleep(0.05)
    assert not kept


async def test_a_pod_that_fits_into_no_message_is_named() -> None:
    stats = Stats(pod("small"), pod("large", *[container(f"{number}" + "x" * 1020) for number in range(200)]))
    with pytest.raises(ResourceExhaustedError, match=r"^sandbox large has "):
        await listed(PodMetrics(stats))


async def test_a_label_of_a_megabyte_is_cut() -> None:
    stats = Stats(pod("p", container("c", image=v1.ImageSpec(image="x" * (1 << 20)))))
    (found,) = await listed(PodMetrics(stats))
    assert {one.label_values[2] for one in found.container_metrics[0].metrics} == {"x" * encoding.LONGEST}
