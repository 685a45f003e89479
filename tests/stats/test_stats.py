"""What services are given: the CRI's messages, and figures for metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cri.api.runtime import v1
from cri.sandbox.machine import ContainerState
from cri.sandbox.spec import DiskUsage
from cri.sandbox.usage import CpuUsage, IoUsage, MemoryUsage, Pressure, Stall, Usage
from cri.stats import Stats, encoding
from cri.stats.samples import Sample


@pytest.fixture
def stats(node, host) -> Stats:
    images = SimpleNamespace(usage=lambda: DiskUsage(1000, 10))
    return Stats(host, node, images, Path("/layers"))


async def pieces(items) -> list[bytes]:
    return [b"".join(item) async for some in items for _, item in some]


async def test_a_container_says_all_there_is(stats, node) -> None:
    pod = node.pod("p")
    node.container(pod, "ended", ContainerState.EXITED)
    (data,) = await pieces(stats.container_items(list(node.containers.values())))
    (item,) = v1.ListContainerStatsResponse.parse(data).stats
    assert item.attributes == v1.ContainerAttributes(
        id="p-c0", metadata=v1.ContainerMetadata(name="p-c0"), labels={"a": "b"}, annotations={"c": "d"}
    )
    assert item.cpu.usage_core_nano_seconds.value == 7
    assert item.cpu.usage_nano_cores is None
    assert (item.memory.usage_bytes.value, item.memory.working_set_bytes.value) == (9, 8)
    assert item.memory.available_bytes is None
    assert item.swap.swap_usage_bytes.value == 3
    assert item.swap.swap_available_bytes is None
    assert item.io is None
    assert item.writable_layer.fs_id.mountpoint == "/layers"
    assert (item.writable_layer.used_bytes.value, item.writable_layer.inodes_used.value) == (4096, 1)
    assert item.writable_layer.timestamp > 0


async def test_a_pod_embeds_its_containers(stats, node) -> None:
    pod = node.pod("p", containers=2)
    containers = await pieces(stats.container_items(list(node.containers.values())))
    (data,) = await pieces(stats.pod_items([pod]))
    (item,) = v1.ListPodSandboxStatsResponse.parse(data).stats
    assert item.attributes.metadata == v1.PodSandboxMetadata(name="p", uid="u", namespace="n")
    assert item.attributes.labels == {"pod": "p"}
    linux = item.linux
    assert [one.attributes.id for one in linux.containers] == ["p-c0", "p-c1"]
    assert linux.process.process_count.value == 2
    assert linux.cpu.usage_core_nano_seconds.value == 7
    assert linux.memory.working_set_bytes.value == 8
    network = linux.network
    assert network.timestamp == linux.cpu.timestamp
    default = network.default_interface
    assert default.name == "eth0"
    assert (default.rx_bytes.value, default.rx_errors.value) == (1, 3)
    assert (default.tx_bytes.value, default.tx_errors.value) == (5, 7)
    assert [one.name for one in network.interfaces] == ["net1"]
    listed = v1.ListContainerStatsResponse.parse(b"".join(containers)).stats
    assert len(listed) == 2


async def test_what_is_encoded_is_encoded_once(stats, node) -> None:
    pod = node.pod("p")
    first = [item async for some in stats.pod_items([pod]) for _, item in some]
    second = [item async for some in stats.pod_items([pod]) for _, item in some]
    shared = [one for one in first[0] if any(one is other for other in second[0]) and len(one) > 8]
    assert len(shared) == 5, "attributes and figures of both, and the layer"


async def test_figures_for_metrics(stats, node) -> None:
    node.pod("p", containers=2)
    node.pod("q", containers=0)
    found = await stats.pods()
    assert [(one.pod.id, [each.container.id for each in one.containers]) for one in found] == [
        ("p", ["p-c0", "p-c1"]),
        ("q", []),
    ]
    again = await stats.pods()
    assert again[0].sample is found[0].sample, "until it is sampled anew"
    assert found[0].containers[0].layer.usage == DiskUsage(4096, 1)


async def test_filesystems(stats, node) -> None:
    node.pod("p", containers=2)
    await stats.containers(list(node.containers.values()))
    layers, images = stats.container_filesystem(), stats.image_filesystem()
    assert (layers.used_bytes.value, layers.inodes_used.value) == (8192, 2)
    assert (images.used_bytes.value, images.inodes_used.value) == (1000, 10)
    assert layers.fs_id.mountpoint == images.fs_id.mountpoint == "/layers"
    assert 0 < layers.timestamp <= images.timestamp


def test_pressure_and_limits() -> None:
    stalls = Pressure(Stall(1000, 0.1, 0.2, 0.3), Stall(500, 1.5, 0.0, 0.0))
    usage = Usage(
        timestamp=5,
        cpu=CpuUsage(total=1, pressure=stalls),
        memory=MemoryUsage(available=4, swap=1, swap_available=2, pressure=stalls),
        io=IoUsage(pressure=stalls),
    )
    data = encoding.figures_of_container(Sample(usage, 0.0, 12, (0.0, 0)))
    told = v1.ContainerStats.parse(data)
    for psi in (told.cpu.psi, told.memory.psi, told.io.psi):
        assert (psi.some.total, psi.some.avg_10, psi.some.avg_60, psi.some.avg_300) == (1000, 0.1, 0.2, 0.3)
        assert (psi.full.total, psi.full.avg_10) == (500, 1.5)
    assert told.cpu.usage_nano_cores.value == 12
    assert (told.memory.available_bytes.value, told.swap.swap_available_bytes.value) == (4, 2)
    assert told.io.timestamp == 5
