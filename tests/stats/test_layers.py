"""Writable layers are walked through behind everybody's back, at a bounded cost."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from cri.sandbox.host import HostError
from cri.sandbox.machine import ContainerState
from cri.sandbox.spec import DiskUsage
from cri.stats.layers import SHARE, STRETCH, Layers, _Pace


@contextlib.asynccontextmanager
async def watched(layers: Layers):
    task = asyncio.create_task(layers.watch())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(what) -> None:
    async with asyncio.timeout(3):
        while not what():
            await asyncio.sleep(0.005)


async def test_a_running_one_is_looked_at_again(node, host) -> None:
    node.pod("p")
    layers = Layers(host, node, interval=0.02)
    async with watched(layers):
        await until(lambda: layers.of("p-c0"))
        host.layer = DiskUsage(8192, 2)
        await until(lambda: layers.of("p-c0").usage.bytes == 8192)
    assert abs(layers.of("p-c0").timestamp - time.time_ns()) < 5e9


async def test_one_that_has_ended_is_looked_at_once_more(node, host) -> None:
    pod = node.pod("p")
    layers = Layers(host, node, interval=0.02)
    async with watched(layers):
        await until(lambda: layers.of("p-c0"))
        host.layer = DiskUsage(8192, 2)
        node.containers["p-c0"].state = ContainerState.EXITED
        await until(lambda: layers.of("p-c0").usage.bytes == 8192)
        looked = len(host.walked)
        await asyncio.sleep(0.1)
        assert len(host.walked) == looked
        assert layers.total().usage == DiskUsage(8192, 2)
        node.remove(pod, "p-c0")
        await until(lambda: layers.of("p-c0") is None)
    assert layers.total().usage == DiskUsage(0, 0)


async def test_one_that_was_made_before_it_is_started(node, host) -> None:
    pod = node.pod("p", containers=0)
    made = node.container(pod, "c", ContainerState.CREATED)
    layers = Layers(host, node, interval=0.02)
    async with watched(layers):
        await until(lambda: layers.of("c"))
        await asyncio.sleep(0.05)
        assert len(host.walked) == 1
        made.state = ContainerState.RUNNING
        await until(lambda: len(host.walked) > 2)


async def test_who_asks_for_a_new_one_waits_a_moment(node, host) -> None:
    node.pod("p", containers=2)
    layers = Layers(host, node, interval=10)
    chosen = list(node.containers.values())
    await asyncio.gather(layers.first(chosen), layers.first(chosen))
    assert layers.of("p-c1") is not None
    assert sorted(host.walked) == ["p-c0", "p-c1"], "a walk is shared"
    node.pod("q")
    host.walk_takes = 3600
    began = time.monotonic()
    await layers.first([node.containers["q-c0"]])
    assert time.monotonic() - began < 2
    assert layers.of("q-c0") is None
    began = time.monotonic()
    await layers.first([node.containers["q-c0"]])
    assert time.monotonic() - began < 0.2, "nobody waits for it twice"


async def test_a_walk_ends_with_the_daemon(node, host) -> None:
    node.pod("p")
    ended = []

    async def walk(spec, check) -> DiskUsage:
        def forever() -> DiskUsage:
            try:
                while True:
                    check()
            finally:
                ended.append(spec.id)

        return await asyncio.to_thread(forever)

    host.root_usage = walk
    layers = Layers(host, node, interval=0.01)
    async with watched(layers):
        await asyncio.sleep(0.1)
        assert not ended
    await until(lambda: ended)
    assert layers.of("p-c0") is None


async def test_who_asks_for_many_new_ones_does_not(node, host) -> None:
    node.pod("p", containers=100)
    layers = Layers(host, node, interval=10)
    await layers.first(list(node.containers.values()))
    assert host.walked == []


async def test_one_that_cannot_be_looked_at_is_told_of_once(node, host, capsys) -> None:
    node.pod("p", containers=2)
    host.fails["p-c0"] = HostError("walk", "c", "why")
    layers = Layers(host, node, interval=0.01)
    async with watched(layers):
        await until(lambda: host.walked.count("p-c1") > 3)
    assert layers.of("p-c0") is None
    assert layers.of("p-c1") is not None
    assert capsys.readouterr().out.count("no figures of a writable layer") == 1


def test_a_walk_takes_a_part_of_the_time() -> None:
    pace = _Pace(SHARE, threading.Event())
    slept = 0.0

    def walk() -> None:
        nonlocal slept
        began, busy = time.perf_counter(), time.thread_time()
        while time.thread_time() - busy < 5 * STRETCH:
            pace.check()
        slept = (time.perf_counter() - began) / (time.thread_time() - busy)

    thread = threading.Thread(target=walk)
    thread.start()
    thread.join()
    assert slept > SHARE / 2
