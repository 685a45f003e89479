"""Limits that change: what is remembered of it, and what an update meets in a container's life."""

import asyncio

import pytest

from cri.api.runtime import v1
from cri.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from cri.sandbox import limits, wire
from cri.sandbox.fake import FakeHost
from cri.sandbox.host import HalfUpdatedError, HostError
from cri.sandbox.machine import ContainerState
from cri.sandbox.spec import ContainerSpec, Resources

SHARES = Resources(cpu_shares=512)
MESSAGE = v1.LinuxContainerResources(cpu_shares=512)


class Kernel:
    """The host's side: what was asked of it, and a gate that holds updates up."""

    def __init__(self, host, monkeypatch):
        self.calls = []
        self.error = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self._stop = host.stop_container
        monkeypatch.setattr(host, "update_container", self.update)
        monkeypatch.setattr(host, "stop_container", self.stop)

    async def update(self, spec, resources):
        self.calls.append(("begin", resources.cpu_shares))
        self.asked.set()
        await self.gate.wait()
        self.calls.append(("end", resources.cpu_shares))
        if self.error is not None:
            raise self.error

    async def stop(self, spec):
        self.calls.append("stop")
        await self._stop(spec)


@pytest.fixture
async def kernel(node, monkeypatch):
    return Kernel(node.host, monkeypatch)


@pytest.fixture
async def container(node, make):
    sandbox_id = await node.pods.run_sandbox(make.pod(), "")
    config = make.container(
        "sleep", linux=v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(cpu_period=7))
    )
    return node.pods.container(await node.pods.create_container(sandbox_id, config))


def update(node, container, shares=512):
    return node.pods.update_container(
        container.id, Resources(cpu_shares=shares), v1.LinuxContainerResources(cpu_shares=shares)
    )


def stored(node, container) -> ContainerSpec:
    return wire.loads(ContainerSpec, node.store.containers[container.id].spec)


async def test_of_a_created_and_a_running_container(node, container, kernel):
    await update(node, container)
    assert (
        stored(node, container).resources
        == container.spec.resources
        == Resources(cpu_period=7, cpu_shares=512)
    )
    await node.pods.start_container(container.id)
    await update(node, container, 600)
    assert stored(node, container).resources == Resources(cpu_period=7, cpu_shares=600)
    assert container.config.linux.resources == v1.LinuxContainerResources(cpu_shares=600)


async def test_of_an_ended_container(node, container, kernel):
    await node.pods.start_container(container.id)
    await node.pods.stop_container(container.id, 0)
    with pytest.raises(FailedPreconditionError, match="is exited: its limits cannot change"):
        await update(node, container)
    assert ("begin", 512) not in kernel.calls
    assert container.spec.resources == Resources(cpu_period=7)


async def test_of_a_container_that_cannot_start_any_more(node, container, kernel):
    await node.pods.stop_sandbox(container.spec.sandbox_id)
    assert container.state is ContainerState.CREATED
    with pytest.raises(FailedPreconditionError, match="is not ready"):
        await update(node, container)
    assert ("begin", 512) not in kernel.calls


@pytest.mark.parametrize("error", [None, HostError("write", "group", "it is gone")])
async def test_of_a_container_that_ends_meanwhile(node, container, kernel, error):
    """What the update has made of it, nobody else would take away."""
    await node.pods.start_container(container.id)
    kernel.gate.clear()
    kernel.error = error
    updating = asyncio.ensure_future(update(node, container))
    await kernel.asked.wait()
    await node.pods.stop_container(container.id, 0)
    kernel.gate.set()
    with pytest.raises(
        FailedPreconditionError, match="is exited: it has ended while its limits were changed"
    ):
        await updating
    assert kernel.calls[-2:] == [("end", 512), "stop"]
    assert container.spec.resources == Resources(cpu_period=7)


async def test_of_a_container_that_is_removed_meanwhile(node, container, kernel):
    kernel.gate.clear()
    updating = asyncio.ensure_future(update(node, container))
    await kernel.asked.wait()
    await node.pods.remove_container(container.id)
    kernel.gate.set()
    with pytest.raises(FailedPreconditionError, match="has ended while"):
        await updating
    assert kernel.calls[-2:] == [("end", 512), "stop"]
    assert container.id not in node.store.containers


async def test_of_a_container_that_starts_meanwhile(node, container, kernel):
    kernel.gate.clear()
    updating = asyncio.ensure_future(update(node, container))
    await kernel.asked.wait()
    await node.pods.start_container(container.id)
    kernel.gate.set()
    await updating
    assert container.state is ContainerState.RUNNING
    assert stored(node, container).resources.cpu_shares == 512


async def test_what_fails_changes_nothing(node, container, kernel):
    kernel.error = HostError("write 512 to", "cgroup", "no")
    with pytest.raises(HostError, match="write 512"):
        await update(node, container)
    assert stored(node, container).resources == container.spec.resources == Resources(cpu_period=7)


async def test_what_cannot_be_put_back_is_shown(node, container, kernel):
    kernel.error = HalfUpdatedError("write", "cgroup", "no", changed=Resources(cpu_quota=9))
    with pytest.raises(HalfUpdatedError):
        await update(node, container)
    assert (
        stored(node, container).resources == container.spec.resources == Resources(cpu_period=7, cpu_quota=9)
    )


async def test_one_after_the_other_and_to_the_end(node, container, kernel):
    kernel.gate.clear()
    first = asyncio.ensure_future(update(node, container, 10))
    await kernel.asked.wait()
    second = asyncio.ensure_future(update(node, container, 20))
    again = asyncio.ensure_future(update(node, container, 20))
    await asyncio.sleep(0.01)
    first.cancel()  # its client has gone
    kernel.gate.set()
    await asyncio.gather(second, again)
    assert kernel.calls == [("begin", 10), ("end", 10), ("begin", 20), ("end", 20)]
    assert stored(node, container).resources.cpu_shares == 20


def test_limits_by_name_are_merged_by_name():
    old = Resources(cpu_shares=5, unified={"a.x": "1", "b.x": "2"}, hugepage_limits={"2MB": 1})
    new = Resources(cpu_quota=6, unified={"b.x": "3"}, hugepage_limits={"1GB": 0})
    assert wire.merged(old, new) == Resources(
        cpu_shares=5, cpu_quota=6, unified={"a.x": "1", "b.x": "3"}, hugepage_limits={"2MB": 1, "1GB": 0}
    )


# -- of a pod as a whole


class PodKernel:
    """The host's side of a pod's limits."""

    def __init__(self, host, monkeypatch):
        self.given = []
        self.stopped = []
        self.error = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self._stop = host.stop_sandbox
        monkeypatch.setattr(host, "update_sandbox", self.update)
        monkeypatch.setattr(host, "stop_sandbox", self.stop)

    async def update(self, spec, resources):
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.given.append((spec.resources, resources))

    async def stop(self, spec, warden):
        self.stopped.append(spec.id)
        await self._stop(spec, warden)


@pytest.fixture
async def pods_kernel(node, monkeypatch):
    return PodKernel(node.host, monkeypatch)


@pytest.fixture
async def sandbox(node, make):
    linux = v1.LinuxPodSandboxConfig(cgroup_parent="/a", resources=v1.LinuxContainerResources(cpu_shares=9))
    return node.pods.sandbox(await node.pods.run_sandbox(make.pod(linux=linux), ""))


def update_pod(node, sandbox, shares=512, **overhead):
    request = v1.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=sandbox.id, resources=v1.LinuxContainerResources(cpu_shares=shares)
    )
    if overhead:
        request.overhead = v1.LinuxContainerResources(**overhead)
    resources = limits.of_pod(request.resources, request.overhead, node.host.features)
    return node.pods.update_sandbox(sandbox.id, resources, request)


async def test_of_a_pod_and_after_a_restart(node, sandbox, pods_kernel):
    await update_pod(node, sandbox, cpu_shares=3)
    await update_pod(node, sandbox, 600)
    assert pods_kernel.given == [
        (None, Resources(cpu_shares=515)),
        (Resources(cpu_shares=515), Resources(cpu_shares=600)),
    ]
    await node.restart()
    found = node.pods.sandbox(sandbox.id)
    assert found.spec.resources == Resources(cpu_shares=600)
    assert found.config.linux.resources.cpu_shares == 600
    assert found.config.linux.overhead.cpu_shares == 3, "what is not given stays"
    assert found.config.linux.cgroup_parent == "/a"


async def test_of_a_pod_that_never_had_any_its_record_is_as_before(node, sandbox):
    """A release before this knows no such field, and takes a record for foreign that has one."""
    assert "resources" not in node.store.sandboxes[sandbox.id].spec


async def test_of_a_stopped_pod(node, sandbox, pods_kernel):
    await node.pods.stop_sandbox(sandbox.id)
    with pytest.raises(FailedPreconditionError, match="is notready: its limits cannot change"):
        await update_pod(node, sandbox)
    with pytest.raises(NotFoundError):
        await node.pods.update_sandbox("nobody", SHARES, v1.UpdatePodSandboxResourcesRequest())
    assert pods_kernel.given == []


@pytest.mark.parametrize(
    "error",
    [None, HostError("write", "group", "it is gone"), HalfUpdatedError("a", "b", "c", changed=SHARES)],
)
@pytest.mark.parametrize("end", ["stop_sandbox", "remove_sandbox"])
async def test_of_a_pod_that_is_stopped_meanwhile(node, sandbox, pods_kernel, error, end):
    """What the update has made of it, nobody else would take away."""
    pods_kernel.gate.clear()
    pods_kernel.error = error
    updating = asyncio.ensure_future(update_pod(node, sandbox))
    await pods_kernel.asked.wait()
    await getattr(node.pods, end)(sandbox.id)
    pods_kernel.stopped.clear()
    pods_kernel.gate.set()
    with pytest.raises(FailedPreconditionError, match="it was stopped while its limits were changed"):
        await updating
    assert pods_kernel.stopped == [sandbox.id]
    assert sandbox.spec.resources is None
    if end == "remove_sandbox":
        assert node.left() == []


async def test_of_a_pod_what_fails_changes_nothing(node, sandbox, pods_kernel):
    before = node.store.sandboxes[sandbox.id]
    pods_kernel.error = HostError("write", "group", "no")
    with pytest.raises(HostError, match="no"):
        await update_pod(node, sandbox)
    assert node.store.sandboxes[sandbox.id] is before
    assert sandbox.config.linux.resources.cpu_shares == 9


async def test_of_a_pod_what_cannot_be_put_back_is_recorded(node, sandbox, pods_kernel):
    pods_kernel.error = HalfUpdatedError("write", "group", "no", changed=Resources(cpu_shares=7))
    with pytest.raises(HalfUpdatedError):
        await update_pod(node, sandbox)
    assert sandbox.spec.resources == Resources(cpu_shares=7)
    assert sandbox.config.linux.resources.cpu_shares == 9


async def test_of_a_pod_one_after_the_other_and_to_the_end(node, sandbox, pods_kernel):
    pods_kernel.gate.clear()
    first = asyncio.ensure_future(update_pod(node, sandbox, 1))
    second = asyncio.ensure_future(update_pod(node, sandbox, 2))
    await pods_kernel.asked.wait()
    first.cancel()
    pods_kernel.gate.set()
    await second
    assert [given.cpu_shares for _, given in pods_kernel.given] == [1, 2]
    assert sandbox.spec.resources == Resources(cpu_shares=2)


def test_overhead_adds_to_limits_and_makes_none():
    def of_pod(overhead, **given):
        message = v1.LinuxContainerResources(**given)
        return limits.of_pod(message, v1.LinuxContainerResources(**overhead), FakeHost.features)

    assert of_pod({"memory_limit_in_bytes": 5, "cpu_quota": 7, "cpu_shares": 9}) == Resources()
    assert of_pod({}, memory_limit_in_bytes=10) == Resources(memory_limit=10)
    assert of_pod({"memory_limit_in_bytes": 5}, memory_limit_in_bytes=10, memory_swap_limit_in_bytes=20) == (
        Resources(memory_limit=15, memory_swap_limit=25)
    )
    assert of_pod({"memory_limit_in_bytes": 5}, memory_limit_in_bytes=-1) == Resources(memory_limit=-1)
    quota = of_pod({"cpu_quota": 10_000, "cpu_period": 50_000}, cpu_quota=30_000, cpu_period=100_000)
    assert quota == Resources(cpu_quota=50_000, cpu_period=100_000)
    assert of_pod({"cpu_quota": 10_000}, cpu_quota=-1) == Resources(cpu_quota=-1)
    with pytest.raises(InvalidArgumentError, match="memory and swap together"):
        of_pod({}, memory_limit_in_bytes=10, memory_swap_limit_in_bytes=5)
    with pytest.raises(InvalidArgumentError, match="memory and swap together"):
        of_pod({"memory_limit_in_bytes": 10, "memory_swap_limit_in_bytes": 5})
