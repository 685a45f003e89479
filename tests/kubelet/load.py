#!/usr/bin/env python3
"""A full node, polled as a kubelet polls it; whether anything fails, grows or slows down. Prints tables.

    python -m tests.kubelet.load [--minutes M] [--pods N]

As root on Linux, from the checkout. Exits 1 with what is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kubelet import census, images
from tests.kubelet.actions import BackOff
from tests.kubelet.census import Census, Holding
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.node import Node
from tests.kubelet.prober import Result
from tests.kubelet.sampler import Sampler
from tests.kubelet.specs import Container, Pod, Probe
from tests.kubelet.statuses import SandboxState
from tests.node.conftest import running_daemon

RATIO = 3.0
"""How much slower than idle the slowest hundredth of calls may be."""
PASSED_OVER = {("ContainerStatus", "NOT_FOUND"), ("PodSandboxStatus", "NOT_FOUND")}
"""Between a list and the question, the collection may remove what was listed."""
WINDOWS = 3
"""The polled time is divided into; each has a p99 of its own, for short runs, in which the best counts."""
CENSUS_SECONDS = 10.0
MEMORY_GROWTH = 0.03
"""Of what there was after the first quarter; or `MEMORY_SLACK` bytes."""
MEMORY_SLACK = 1 << 20
FEW = {"descriptors": 3, "threads": 8}
"""What comes and goes with calls; a pool has another thread when all are busy, up to its size."""
RESTARTING = 10
"""One pod in so many has a container that ends again and again."""
PROBE = Probe(["sh", "-c", "exit 0"], timeout_seconds=10)
AT_ONCE = 10
"""Pods that are started together."""

TALKER = "while :; do echo something is said again and again; sleep 2; done"
ENDING = "echo it goes on for a while; sleep 15; exit 1"


@dataclass(slots=True)
class Report:
    """What a run has shown."""

    idle: dict[str, list[float]] = field(default_factory=dict)
    """Seconds that calls took, by RPC."""
    windows: list[dict[str, list[float]]] = field(default_factory=list)
    """The same, while a kubelet polls."""
    counts: list[Census] = field(default_factory=list)
    calls: dict[str, list[float]] = field(default_factory=dict)
    """The kubelet's own."""
    failures: dict[tuple[str, str], int] = field(default_factory=dict)
    probes: int = 0
    failed_probes: int = 0
    restarts: int = 0

    def polled(self, rpc: str) -> list[float]:
        """Of all windows."""
        return [seconds for window in self.windows for seconds in window.get(rpc, [])]

    def quarters(self) -> list[list[Census]]:
        """The censuses of each quarter; in the first, pools and caches fill up."""
        size = max(len(self.counts) // 4, 1)
        return [self.counts[first : first + size] or self.counts[-1:] for first in range(0, 4 * size, size)]

    def problems(self, *, best_window: bool) -> list[str]:
        """What is wrong. A short run has few calls, so that its best window counts."""
        found = [
            f"{rpc} failed {count} times: {code}"
            for (rpc, code), count in self.failures.items()
            if (rpc, code) not in PASSED_OVER
        ]
        if self.failed_probes:
            found.append(f"{self.failed_probes} of {self.probes} probes failed")
        if not self.restarts:
            found.append("no container was restarted: nothing changed, and the run shows little")
        for rpc, idle in self.idle.items():
            some = [each[rpc] for each in self.windows] if best_window else [self.polled(rpc)]
            ratio = min(map(p99, some)) / p99(idle)
            if ratio > RATIO:
                found.append(f"{rpc}: p99 is {ratio:.1f} times that of an idle node")
        _, before, _, after = self.quarters()
        for name in ("daemon", "spawner", "wardens"):
            found += _growth(name, _middle(before, name), _middle(after, name))
        if lasting := frozenset.intersection(*(each.zombies for each in self.counts[-2:])):
            found.append(f"zombies: {sorted(lasting)}")
        return found

    def show(self) -> None:
        """Print the tables."""
        print(
            f"\n{'milliseconds':<22}{'idle p50':>10}{'p99':>9}{'polled p50':>12}{'p99':>9}{'ratio':>7}{'calls':>8}"
        )
        for rpc, idle in self.idle.items():
            polled = self.polled(rpc)
            figures = [statistics.median(idle), p99(idle), statistics.median(polled), p99(polled)]
            print(
                f"{rpc:<22}{figures[0] * 1e3:>10.2f}{figures[1] * 1e3:>9.2f}{figures[2] * 1e3:>12.2f}"
                f"{figures[3] * 1e3:>9.2f}{figures[3] / figures[1]:>7.2f}{len(polled):>8}"
            )
        print(f"\n{'the kubelet itself, ms':<22}{'calls':>10}{'p50':>9}{'p99':>12}{'longest':>9}")
        for rpc, took in sorted(self.calls.items()):
            print(
                f"{rpc:<22}{len(took):>10}{statistics.median(took) * 1e3:>9.2f}{p99(took) * 1e3:>12.2f}"
                f"{max(took) * 1e3:>9.2f}"
            )
        print(f"\n{self.probes} probes, {self.failed_probes} failed; {self.restarts} containers restarted")
        print("\nin each quarter   MiB" + " " * 28 + "descriptors" + " " * 17 + "threads")
        for name in ("daemon", "spawner", "wardens"):
            each = [_middle(some, name) for some in self.quarters()]
            memory = "".join(f"{one.memory / (1 << 20):>8.2f}" for one in each)
            descriptors = "".join(f"{one.descriptors:>6}" for one in each)
            threads = "".join(f"{one.threads:>5}" for one in each)
            print(f"{name:<10}{memory}  {descriptors}  {threads}")


def p99(seconds: Sequence[float]) -> float:
    """The slowest hundredth begins here."""
    return sorted(seconds)[int(len(seconds) * 0.99)]


def workload(number: int, image: str) -> Pod:
    """A pod with two containers, which are probed, and log."""
    ending = number % RESTARTING == 0
    return Pod(
        f"pod{number}",
        [
            Container("talker", image, ["sh", "-c", TALKER], liveness=PROBE, memory_limit=64 << 20),
            Container("ending", image, ["sh", "-c", ENDING])
            if ending
            else Container("second", image, ["sh", "-c", TALKER], liveness=PROBE),
        ],
        labels={"app": "load"},
        grace_seconds=2,
    )


class Load:
    """A kubelet's loops, on a node with pods."""

    def __init__(self, node: Node, kubelet: Kubelet, hertz: float) -> None:
        """`hertz` is how often the sampler calls each RPC."""
        self._node = node
        self._kubelet = kubelet
        self._hertz = hertz
        self._report = Report()

    async def run(self, pods: int, seconds: float, idle_seconds: float) -> Report:
        """Start pods, measure them idle, then polled. Raises whatever a duty raises."""
        kubelet, report = self._kubelet, self._report
        await kubelet.start()
        some = [workload(number, self._node.images.shell) for number in range(pods)]
        for first in range(0, pods, AT_ONCE):
            await kubelet.run(*some[first : first + AT_ONCE], patience=120)
        status = kubelet.status(some[1])
        sampler = Sampler(self._node.socket, self._hertz, status.containers[0].id, status.sandboxes[0].id)
        try:
            await asyncio.sleep(3)
            await asyncio.to_thread(sampler.take)
            await asyncio.sleep(idle_seconds)
            report.idle = await asyncio.to_thread(sampler.take)
            kubelet.runtime.seconds.clear()
            kubelet.runtime.failures.clear()
            made = len(kubelet.manager.made)
            await self._poll(seconds, sampler)
            report.restarts = len(kubelet.manager.made) - made
        finally:
            sampler.close()
        report.calls, report.failures = dict(kubelet.runtime.seconds), dict(kubelet.runtime.failures)
        return report

    async def _poll(self, seconds: float, sampler: Sampler) -> None:
        kubelet = self._kubelet
        duties: list[tuple[float, Callable[[], Awaitable[Any]]]] = [
            (1.0, kubelet.step),
            (5.0, kubelet.check_runtime),
            (10.0, kubelet.statistics.summary),
            (10.0, kubelet.statistics.containers),
            (15.0, kubelet.statistics.metrics),
            (10.0, kubelet.images.filesystem),
            (10.0, kubelet.rotation.rotate_all),
            (10.0, self._probe_all),
            (30.0, kubelet.images.detect),
            (60.0, kubelet.collection.collect),
            (CENSUS_SECONDS if seconds > 120 else 2.0, self._count),
        ]
        kubelet.rotation.max_size = 8192
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_every(period, duty)) for period, duty in duties]
            for _ in range(WINDOWS):
                await asyncio.sleep(seconds / WINDOWS)
                self._report.windows.append(await asyncio.to_thread(sampler.take))
            for task in tasks:
                task.cancel()
        await self._count()

    async def _probe_all(self) -> None:
        """Each container with a probe, over the ten seconds until the next round."""
        kubelet = self._kubelet
        chosen = [
            (one.id, probe)
            for pod in kubelet.pods.values()
            for one in kubelet.status(pod).running()
            if (probe := pod.container(one.metadata.name).liveness) is not None
        ]
        pause = 9.0 / max(len(chosen), 1)

        async def probe_later(number: int, container: str, probe: Probe) -> Result:
            await asyncio.sleep(number * pause)
            return await kubelet.prober.probe(container, probe)

        results = await asyncio.gather(*(probe_later(number, *each) for number, each in enumerate(chosen)))
        self._report.probes += len(results)
        self._report.failed_probes += sum(each is not Result.SUCCESS for each in results)

    async def _count(self) -> None:
        sandboxes = [
            each.id
            for pod in self._kubelet.pods.values()
            for each in self._kubelet.status(pod).sandboxes
            if each.state == SandboxState.SANDBOX_READY
        ]
        self._report.counts.append(
            await asyncio.to_thread(census.take, self._node.base, self._node.pid(), sandboxes)
        )


async def _every(period: float, duty: Callable[[], Awaitable[Any]]) -> None:
    while True:
        began = time.monotonic()
        await duty()
        await asyncio.sleep(max(began + period - time.monotonic(), 0))


def _middle(some: Sequence[Census], name: str) -> Holding:
    each = [getattr(one, name) for one in some]
    return Holding(
        *(int(statistics.median(getattr(one, what) for one in each)) for what in Holding.__slots__)
    )


def _growth(name: str, before: Holding, after: Holding) -> list[str]:
    found = []
    if after.memory - before.memory > max(before.memory * MEMORY_GROWTH, MEMORY_SLACK):
        found.append(f"{name}: {after.memory - before.memory} bytes more than {before.memory}")
    for what, few in FEW.items():
        old, new = getattr(before, what), getattr(after, what)
        if new - old > few:
            found.append(f"{name}: {new} {what}, and {old} before")
    return found


async def measure(node: Node, pods: int, seconds: float, idle_seconds: float, hertz: float) -> Report:
    """Do it on a node; its pods are gone afterwards."""
    kubelet = Kubelet(node.socket, node.base / "load", f"/kubelet-load{os.getpid()}", BackOff(1.0, 1.0))
    try:
        return await Load(node, kubelet, hertz).run(pods, seconds, idle_seconds)
    finally:
        await kubelet.close()


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pods", type=int, default=110)
    parser.add_argument("--hertz", type=float, default=5, help="of each RPC that is measured (%(default)s)")
    options = parser.parse_args()
    seconds = options.minutes * 60
    with (
        tempfile.TemporaryDirectory(prefix="cri-load-") as directory,
        images.serve(Path(directory), images.fill_with_busybox) as served,
        running_daemon("", f"cril{os.getpid()}") as daemon,
    ):
        node = Node(
            daemon.base,
            daemon.network,
            daemon.subnets,
            served,
            daemon.start,
            lambda: daemon.end(signal.SIGKILL),
            lambda: daemon.process.pid,
        )
        report = asyncio.run(measure(node, options.pods, seconds, max(seconds / 5, 10), options.hertz))
        report.show()
        problems = report.problems(best_window=False)
        print("\n" + ("\n".join(problems) or "no error, no growth, no delay"), flush=True)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
