"""Limits of running containers and pods, changed in place, on a real kernel."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

MIB = 1 << 20


def refused(call, *about: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert all(word in caught.value.details() for word in about), caught.value.details()


def resize(daemon, container: str, **limits) -> None:
    message = v1.LinuxContainerResources(**limits)
    daemon.client(
        "UpdateContainerResources", v1.UpdateContainerResourcesRequest(container_id=container, linux=message)
    )


def resize_pod(daemon, pod: str, overhead: v1.LinuxContainerResources | None = None, **limits) -> None:
    daemon.client(
        "UpdatePodSandboxResources",
        v1.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=pod, resources=v1.LinuxContainerResources(**limits), overhead=overhead
        ),
    )


def group(controller: str, path: str) -> Path:
    found = Path("/sys/fs/cgroup", controller, path)
    if not Path("/sys/fs/cgroup", controller).is_dir():
        pytest.skip("needs the controllers of cgroups version 1")
    return found


def value(controller: str, path: str, name: str) -> int:
    return int((group(controller, path) / name).read_text())


def test_a_container_up_and_down(daemon):
    daemon.pull()
    pod = daemon.pod()
    eat = "x=a; while [ ${#x} -lt 20000000 ]; do x=$x$x; done; echo full; while :; do sleep 1; done"
    limits = v1.LinuxContainerResources(
        memory_limit_in_bytes=256 * MIB,
        memory_swap_limit_in_bytes=256 * MIB,
        cpu_period=100_000,
        cpu_quota=50_000,
    )
    container = daemon.container(pod, "sh", "-c", eat, linux=v1.LinuxContainerConfig(resources=limits))
    path = f"cri-jails/{pod}/{container}"
    deadline = time.monotonic() + 60
    while "full" not in daemon.log_of(container).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for memory, swap, quota in ((512, 512, 150_000), (128, 192, 20_000), (96, 96, 20_000), (300, 400, -1)):
        resize(
            daemon, container, memory_limit_in_bytes=memory * MIB, memory_swap_limit_in_bytes=swap * MIB, cpu_quota=quota
        )  # fmt: skip
        shown = daemon.status(container).status.resources.linux
        assert (shown.memory_limit_in_bytes, shown.cpu_quota) == (memory * MIB, quota)
        assert shown.memory_swap_limit_in_bytes == swap * MIB
        assert value("memory", path, "memory.limit_in_bytes") == memory * MIB
        assert value("cpu", path, "cpu.cfs_quota_us") == quota
    before = daemon.status(container).status
    refused(
        lambda: resize(daemon, container, memory_limit_in_bytes=4 * MIB, memory_swap_limit_in_bytes=4 * MIB),
        "more is in use than can be reclaimed", container,
    )  # fmt: skip
    assert daemon.status(container).status == before
    refused(lambda: resize(daemon, container, cpu_quota=5), "at least 1000 microseconds")
    status = daemon.client("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod))
    assert status.containers_statuses == [before]


def test_a_pod_of_its_own_and_the_next_daemon(daemon):
    daemon.pull()
    pod = daemon.pod()
    path = f"cri-jails/{pod}"
    limits = v1.LinuxContainerConfig(
        resources=v1.LinuxContainerResources(cpu_period=100_000, cpu_quota=20_000)
    )
    container = daemon.container(pod, "sleep", "1000", linux=limits)
    overhead = v1.LinuxContainerResources(memory_limit_in_bytes=10 * MIB)
    resize_pod(
        daemon, pod, overhead, memory_limit_in_bytes=100 * MIB, cpu_period=100_000, cpu_quota=40_000, cpu_shares=99
    )  # fmt: skip
    assert value("memory", path, "memory.limit_in_bytes") == 110 * MIB
    assert value("cpu", path, "cpu.cfs_quota_us") == 40_000
    refused(lambda: resize_pod(daemon, pod, cpu_quota=10_000), "lowered after them")
    refused(lambda: resize(daemon, container, cpu_quota=50_000), "raised before those of its containers")
    daemon.end(signal.SIGKILL)
    daemon.start()
    asked = v1.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    spec = json.loads(daemon.client("PodSandboxStatus", asked).info["info"])["spec"]
    assert (spec["resources"]["memory_limit"], spec["resources"]["cpu_quota"]) == (110 * MIB, 40_000)
    resize(daemon, container, cpu_quota=10_000)
    resize_pod(daemon, pod, cpu_quota=15_000)
    assert value("cpu", path, "cpu.cfs_quota_us") == 15_000
    assert value("memory", path, "memory.limit_in_bytes") == 110 * MIB, "what is not given stays"
    daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert not group("memory", path).exists()
    with pytest.raises(grpc.RpcError) as caught:
        resize_pod(daemon, pod, cpu_quota=15_000)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_pod_in_a_group_that_others_made(daemon):
    daemon.pull()
    made = group("memory", f"cri-test-{daemon.base.name}")
    made.mkdir()
    try:
        before = (made / "memory.limit_in_bytes").read_text()
        pod = daemon.pod(cgroup_parent=f"/{made.name}")
        resize_pod(daemon, pod, memory_limit_in_bytes=100 * MIB)
        assert (made / "memory.limit_in_bytes").read_text() == before
        daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    finally:
        made.rmdir()


def test_what_a_pod_cannot_have_is_refused(daemon):
    pod = daemon.pod()
    for limits, code in (
        ({"oom_score_adj": 5}, grpc.StatusCode.UNIMPLEMENTED),
        (
            {"memory_limit_in_bytes": 10 * MIB, "memory_swap_limit_in_bytes": MIB},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ({"cpuset_cpus": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cpuset_cpus": "4000"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cpu_period": -1}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            resize_pod(daemon, pod, **limits)
        assert caught.value.code() is code, (limits, caught.value.details())
    with pytest.raises(grpc.RpcError) as caught:
        resize_pod(daemon, "nobody", cpu_shares=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    resize_pod(daemon, pod)
