"""Pods and containers as statistics see them, and a host that says what it was told to."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from cri.api.runtime import v1
from cri.sandbox.host import HostError
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.spec import DiskUsage
from cri.sandbox.usage import CpuUsage, InterfaceUsage, MemoryUsage, ProcessUsage, Usage
from cri.state import ContainerRecord, SandboxRecord


class Host:
    """Says how often it was asked, and how many asked at the same time."""

    counts_at_far_ends = False

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.at_once = self.most_at_once = 0
        self.fails: dict[str, Exception] = {}
        self.cpu: dict[str, int] = {}
        self.takes = 0.001
        self.walked: list[str] = []
        self.layer = DiskUsage(4096, 1)
        self.walk_takes = 0.0
        self.snapshots = SimpleNamespace(accounts=False)
        self.measured = []

    async def usages(self, pods):
        ids = [one.id for pod in pods for one in (*pod.containers, *((pod.sandbox,) if pod.itself else ()))]
        self.asked.append(ids)
        self.measured += pods
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes)
        self.at_once -= 1
        found = {}
        for one in ids:
            error = self.fails.get(one)
            if error is not None and not isinstance(error, HostError):
                raise error
            found[one] = error or usage(self.cpu.get(one, 7))
        return found

    async def root_usage(self, spec, check) -> DiskUsage:
        self.walked.append(spec.id)
        check()
        await asyncio.sleep(self.walk_takes)
        if spec.id in self.fails:
            raise self.fails[spec.id]
        return self.layer


def usage(cpu: int) -> Usage:
    return Usage(
        timestamp=time.time_ns(),
        cpu=CpuUsage(total=cpu),
        memory=MemoryUsage(usage=9, working_set=8, swap=3),
        processes=ProcessUsage(processes=2),
        interfaces=(InterfaceUsage("eth0", 1, 2, 3, 4, 5, 6, 7, 8), InterfaceUsage("net1")),
    )


class Node:
    """What `Pods` has of them."""

    def __init__(self) -> None:
        self.sandboxes = {}
        self.containers = {}

    def pod(self, name: str, containers: int = 1, parent: str = "", state: SandboxState = SandboxState.READY):
        config = v1.PodSandboxConfig(
            metadata=v1.PodSandboxMetadata(name=name, uid="u", namespace="n"), labels={"pod": name}
        )
        record = SandboxRecord(
            id=name,
            state=state.value,
            config=bytes(config),
            spec="{}",
            name=name,
            namespace="n",
            uid="u",
            attempt=0,
        )
        pod = SimpleNamespace(
            id=name,
            state=state,
            record=record,
            config=config,
            spec=SimpleNamespace(id=name, limits_parent=parent),
            warden=None,
            containers={},
        )
        self.sandboxes[name] = pod
        for number in range(containers):
            self.container(pod, f"{name}-c{number}")
        return pod

    def container(self, pod, name: str, state: ContainerState = ContainerState.RUNNING):
        config = v1.ContainerConfig(
            metadata=v1.ContainerMetadata(name=name), labels={"a": "b"}, annotations={"c": "d"}
        )
        record = ContainerRecord(
            id=name, sandbox_id=pod.id, name=name, state=state.value, config=bytes(config), spec="{}"
        )
        made = SimpleNamespace(
            id=name, state=state, record=record, config=config, spec=SimpleNamespace(id=name)
        )
        self.containers[name] = pod.containers[name] = made
        return made

    def remove(self, pod, name: str) -> None:
        del self.containers[name], pod.containers[name]


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def node() -> Node:
    return Node()
