"""Readings are taken a few at a time, and shared by those who wait for the same."""

from __future__ import annotations

import asyncio

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.machine import ContainerState, SandboxState
from cri.stats.sampling import AT_ONCE, BATCH, Sampler


def all_containers(node):
    return list(node.containers.values())


def ids(host) -> list[str]:
    return sorted(one for batch in host.asked for one in batch)


async def test_who_asks_for_the_same_meanwhile_shares(node, host) -> None:
    for number in range(10):
        node.pod(f"p{number}", containers=5)
    sampler = Sampler(host, node, interval=10)
    containers = all_containers(node)
    await asyncio.gather(
        sampler.refresh((), containers), sampler.refresh((), containers), sampler.refresh((), containers[:10])
    )
    assert ids(host) == sorted(one.id for one in containers)
    assert host.most_at_once <= AT_ONCE
    assert max(map(len, host.asked)) <= BATCH
    await sampler.refresh((), containers)
    assert len(ids(host)) == 50, "a recent reading does"


async def test_what_is_old_is_read_when_it_is_asked_for(node, host) -> None:
    pod = node.pod("p", containers=2)
    sampler = Sampler(host, node, interval=0.02)
    await sampler.read_all()
    first = sampler.of("p-c0")
    await asyncio.sleep(0.05)
    await sampler.refresh((), [node.containers["p-c0"]])
    assert host.asked == [["p-c0", "p-c1", "p"], ["p-c0"]], "that alone"
    assert sampler.of("p-c0").taken > first.taken
    await asyncio.sleep(0.05)
    await sampler.refresh([pod], [node.containers["p-c1"]])
    assert host.asked[2:] == [["p-c0", "p-c1", "p"]], "a pod with all of its containers, once"


async def test_who_asks_again_a_second_later_sees_something_new(node, host, monkeypatch) -> None:
    """As `crictl stats` does, which shows what has been used in between."""
    monkeypatch.setattr("cri.stats.sampling.SOON", 0.05)
    pod = node.pod("p", containers=1)
    sampler = Sampler(host, node, interval=60)
    watching = asyncio.create_task(sampler.watch())
    try:
        await asyncio.sleep(0.2)
        assert len(host.asked) == 1, "nobody has asked"
        for _ in range(20):
            await sampler.refresh([pod], ())
        first = sampler.of("p")
        async with asyncio.timeout(5):
            while sampler.of("p") is first:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(host.asked) == 2, "once for all who have asked"
    finally:
        watching.cancel()


async def test_all_that_runs_is_read_and_nothing_else(node, host) -> None:
    pod = node.pod("p", containers=2)
    node.container(pod, "ended", ContainerState.EXITED)
    node.pod("stopped", containers=1, state=SandboxState.NOTREADY)
    sampler = Sampler(host, node, interval=10)
    await sampler.read_all()
    assert ids(host) == ["p", "p-c0", "p-c1"]
    node.remove(pod, "p-c1")
    await sampler.read_all()
    assert sampler.of("p-c1") is None, "it is gone"


async def test_pods_that_share_their_limits(node, host) -> None:
    node.pod("a", parent="/shared")
    node.pod("b", parent="/shared")
    node.pod("c", parent="/own")
    node.pod("before c", parent="/own", state=SandboxState.NOTREADY)
    node.pod("d")
    node.pod("e")
    await Sampler(host, node, interval=10).read_all()
    assert {one.sandbox.id: one.alone for one in host.measured} == {
        "a": False, "b": False, "c": True, "d": True, "e": True,
    }  # fmt: skip


async def test_one_that_ends_meanwhile_is_forgotten(node, host) -> None:
    node.pod("p", containers=2)
    sampler = Sampler(host, node, interval=10)
    host.takes = 0.02
    reading = asyncio.create_task(sampler.read_all())
    await asyncio.sleep(0.01)
    node.containers["p-c0"].state = ContainerState.EXITED
    await reading
    assert sampler.of("p-c0") is None
    assert sampler.of("p-c1") is not None


async def test_one_that_cannot_be_read_is_left_out_and_told_of_once(node, host, capsys) -> None:
    node.pod("p", containers=2)
    sampler = Sampler(host, node, interval=10)
    await sampler.read_all()
    host.fails["p-c1"] = HostError("read", "p-c1", "gone")
    for _ in range(3):
        await sampler.read_all()
    assert sampler.of("p-c0") is not None
    assert sampler.of("p-c1") is None
    assert capsys.readouterr().out.count("no statistics") == 1


async def test_what_nobody_foresaw_is_told_as_it_is(node, host) -> None:
    node.pod("p")
    node.pod("q", containers=BATCH)
    host.fails["p-c0"] = ZeroDivisionError("why")
    sampler = Sampler(host, node, interval=10)
    with pytest.raises(ZeroDivisionError, match="why"):
        await sampler.refresh((), [node.containers["p-c0"]])
    await sampler.read_all()
    assert sampler.of("q") is not None, "it costs nobody else"


async def test_a_host_that_hangs_costs_a_moment(node, host, monkeypatch) -> None:
    monkeypatch.setattr("cri.stats.sampling.PATIENCE", 0.05)
    node.pod("p")
    sampler = Sampler(host, node, interval=0.01)
    await sampler.read_all()
    host.takes = 3600
    await asyncio.sleep(0.02)
    async with asyncio.timeout(1):
        await sampler.refresh((), all_containers(node))
    assert sampler.of("p-c0") is not None, "what there is must do"


async def test_the_ends_on_the_node_are_asked_for_where_the_host_counts_there(node, host) -> None:
    host.counts_at_far_ends = True
    node.pod("p")

    async def far_ends(sandboxes):
        return {one: {"host": "eth0"} for one in sandboxes}

    await Sampler(host, node, 10, far_ends).read_all()
    assert [dict(one.interfaces) for one in host.measured] == [{"host": "eth0"}]


async def test_nothing_is_kept_but_the_last_reading(node, host) -> None:
    node.pod("p", containers=3)
    sampler = Sampler(host, node, interval=10)
    for _ in range(50):
        await sampler.read_all()
    assert len(sampler._samples) == 4
    assert not sampler._under_way


async def test_each_pass_is_timed(node, host) -> None:
    took: list[float] = []
    node.pod("p")
    sampler = Sampler(host, node, interval=0.01, took=took.append)
    watching = asyncio.create_task(sampler.watch())
    async with asyncio.timeout(5):
        while len(took) < 2:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert min(took) >= 0
