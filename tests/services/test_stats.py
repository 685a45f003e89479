"""Statistics are read a few at a time, and shared by those who ask for the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from cri.api.runtime import v1
from cri.sandbox.fake import FakeHost
from cri.sandbox.host import HostError
from cri.sandbox.machine import ContainerState
from cri.sandbox.spec import DiskUsage, Usage
from cri.state import ContainerRecord
from cri.stats import AT_ONCE, Stats


class Host:
    """Says how often it was asked, and how many asked at the same time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.fails: dict[str, Exception] = {}

    async def container_usage(self, spec) -> Usage:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.asked.append(spec.id)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if spec.id in self.fails:
            raise self.fails[spec.id]
        return Usage(timestamp=5, cpu_nanoseconds=7, memory_usage=9, memory_working_set=8, swap_usage=3)

    async def container_usages(self, specs):
        return await FakeHost.container_usages(self, specs)

    async def root_usage(self, spec) -> DiskUsage:
        return DiskUsage(4096, 1)


def container(name: str, state: ContainerState = ContainerState.RUNNING):
    config = v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name=name), labels={"a": "b"}, annotations={"c": "d"}
    )
    record = ContainerRecord(
        id=name, sandbox_id="s", name=name, state=state.value, config=bytes(config), spec="{}"
    )
    return SimpleNamespace(id=name, state=state, record=record, config=config, spec=SimpleNamespace(id=name))


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def stats(host: Host) -> Stats:
    return Stats(host, SimpleNamespace(containers={}), None, Path("/pods"))


async def test_an_item_says_all_there_is(stats) -> None:
    ((name, pieces),) = await stats.of([container("c1"), container("c2", ContainerState.EXITED)])
    assert name == "c1"
    (item,) = v1.ListContainerStatsResponse.parse(b"".join(pieces)).stats
    assert item.attributes == v1.ContainerAttributes(
        id="c1", metadata=v1.ContainerMetadata(name="c1"), labels={"a": "b"}, annotations={"c": "d"}
    )
    assert (item.cpu.timestamp, item.cpu.usage_core_nano_seconds.value) == (5, 7)
    assert (item.memory.usage_bytes.value, item.memory.working_set_bytes.value) == (9, 8)
    assert item.memory.available_bytes is None
    assert item.swap.swap_usage_bytes.value == 3
    assert item.writable_layer.fs_id.mountpoint == "/pods"
    assert (item.writable_layer.used_bytes.value, item.writable_layer.inodes_used.value) == (4096, 1)


async def test_who_asks_for_the_same_meanwhile_shares(stats, host) -> None:
    containers = [container(f"c{number}") for number in range(50)]
    # A batch is one after the other here, so there are as many at once as batches.
    first, second, other = await asyncio.gather(
        stats.of(containers), stats.of(list(containers)), stats.of(containers[:10])
    )
    assert first is second
    assert [name for name, _ in first] == [one.id for one in containers]
    assert [name for name, _ in other] == [one.id for one in containers[:10]]
    assert len(host.asked) == 60
    assert host.most_at_once <= AT_ONCE
    await stats.of(containers)
    assert len(host.asked) == 110, "figures are not kept for those who ask later"


async def test_one_that_cannot_be_read_is_left_out(stats, host) -> None:
    host.fails["c1"] = HostError("read", "c1", "gone")
    assert [name for name, _ in await stats.of([container("c0"), container("c1")])] == ["c0"]


async def test_what_nobody_foresaw_is_told_as_it_is(stats, host) -> None:
    host.fails["c1"] = ZeroDivisionError("why")
    with pytest.raises(ZeroDivisionError, match="why"):
        await stats.of([container("c0"), container("c1")])
