"""Events of pods on a FreeBSD kernel, and what becomes of limits there that containers share or exceed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

import pytest

from cri.api.runtime import v1
from cri.events import CREATED, DELETED, STARTED, STOPPED
from cri.sandbox import limits
from cri.sandbox.host import LimitRefusedError
from cri.sandbox.machine import ContainerState
from cri.statuses import Statuses

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]  # an emulated machine is slow


class NoImages:
    """Images without names."""

    def find(self, reference: str) -> None:
        return None


class Listener:
    def __init__(self, machine) -> None:
        self.heard: list[v1.ContainerEventResponse] = []
        self._events = machine.events
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async with contextlib.aclosing(self._events.follow(Statuses(NoImages()))) as stream:
            async for event in stream:
                self.heard.append(v1.ContainerEventResponse.parse(event))

    async def until(self, kind, of: str) -> list[v1.ContainerEventResponse]:
        async with asyncio.timeout(120):
            while (kind, of) not in told(self.heard):
                await asyncio.sleep(0.05)
        return self.heard

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def told(heard) -> list:
    return [(event.container_event_type, event.container_id) for event in heard]


async def test_the_life_of_a_pod(machine):
    ear = Listener(machine)
    pod = await machine.pod()
    shot = await machine.container(pod, "sleep", "1000", name="shot")
    stopped = await machine.container(pod, "sleep", "1000", name="stopped")
    os.kill(machine.pods.container(shot).record.pid, signal.SIGKILL)
    await ear.until(STOPPED, shot)
    await machine.pods.stop_container(stopped, 0)
    await machine.pods.remove_sandbox(pod)
    heard = await ear.until(DELETED, pod)
    await ear.close()
    for of in (pod, shot, stopped):
        kinds = [kind for kind, about in told(heard) if about == of]
        assert kinds == [CREATED, STARTED, STOPPED, DELETED]
    assert told(heard)[-1] == (DELETED, pod)
    times = [event.created_at for event in heard]
    assert times == sorted(set(times))
    ended = next(event for event in heard if told([event]) == [(STOPPED, shot)])
    states = {status.id: (status.state, status.exit_code) for status in ended.containers_statuses}
    assert states == {
        shot: (v1.ContainerState.CONTAINER_EXITED, 137),
        stopped: (v1.ContainerState.CONTAINER_RUNNING, 0),
    }


async def test_what_ends_without_a_daemon_is_told_by_the_next(machine):
    pod = await machine.pod()
    shot = await machine.container(pod, "sleep", "1000")
    pid, known = machine.pods.container(shot).record.pid, machine.events.now()
    await machine.crash()
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(1)
    await machine.start()
    ear = Listener(machine)
    (event,) = await ear.until(STOPPED, shot)
    await ear.close()
    assert event.created_at > known
    assert event.containers_statuses[0].exit_code == 137


async def test_a_memory_limit_below_what_is_in_use_is_refused_and_kills_nobody(machine):
    linux = v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(memory_limit_in_bytes=256 << 20))
    container = await machine.container(await machine.pod(), "sleep", "1000", linux=linux)
    jail = f"jail:cri-{machine.pods.container(container).spec.sandbox_id}.c{container}:"
    async with asyncio.timeout(60):  # racct looks at memory once a second
        while machine.kernel.rctl_usage(jail)["memoryuse"] < 100_000:
            await asyncio.sleep(0.5)

    async def update(limit: int) -> None:
        message = v1.LinuxContainerResources(memory_limit_in_bytes=limit)
        resources = limits.resources(message, machine.host.features)
        await machine.pods.update_container(container, resources, message)

    with pytest.raises(LimitRefusedError, match="bytes are in use"):
        await update(50_000)
    await asyncio.sleep(3)
    assert machine.pods.container(container).state is ContainerState.RUNNING
    assert machine.pods.container(container).spec.resources.memory_limit == 256 << 20
    await update(128 << 20)
    assert machine.pods.container(container).spec.resources.memory_limit == 128 << 20


async def test_a_rule_of_a_pods_jail_does_not_hold_its_containers_together(machine):
    """Why nothing is done for a pod as a whole. If this fails, FreeBSD has learnt to, and so can we."""
    pod = await machine.pod()
    rule = f"jail:cri-{pod}:maxproc:deny=2"
    subprocess.run(["rctl", "-a", rule], check=True)
    try:
        one = await machine.container(pod, "sleep", "1000", name="one")
        two = await machine.container(pod, "sleep", "1000", name="two")
        for container in (one, two):
            printed = await machine.sh(container, "for i in 1 2 3 4; do sleep 2 & done; wait; echo done")
            assert printed.strip() == "done"
    finally:
        subprocess.run(["rctl", "-r", rule], check=True)
