"""A node's kubelet starts, and what becomes of pods while their runtime is away."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1
from tests.kubelet import container_logs
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.node import Node
from tests.kubelet.pleg import EventType
from tests.kubelet.specs import Container, Pod, Restart
from tests.kubelet.statuses import State

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]


async def test_a_node_starts(kubelet: Kubelet, node: Node) -> None:
    # A node's own part of the cluster's addresses, as the API server gives it.
    cidr = str(list(ipaddress.ip_network(node.subnets[0]).subnets(new_prefix=24))[7])
    info = await kubelet.start(cidr)
    assert kubelet.runtime.calls == [
        *("RuntimeConfig", "Version", "Status", "ListPodSandbox", "ListContainers"),
        *("ImageFsInfo", "ListImages", "ListPodSandbox", "ListContainers", "UpdateRuntimeConfig"),
    ]
    assert info.cgroup_driver == v1.CgroupDriver.CGROUPFS
    assert (info.version.runtime_name, info.sandboxes, info.containers) == ("cri-jails", 0, 0)
    assert info.status.features.supplemental_groups_policy

    pod = Pod("addressed", [Container("main", node.images.shell)])
    await kubelet.run(pod)
    assert ipaddress.ip_address(kubelet.status(pod).ips[0]) in ipaddress.ip_network(cidr)


async def test_pods_outlive_their_runtime_and_their_kubelet(kubelet: Kubelet, node: Node) -> None:
    image = node.images.shell
    count = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done"
    steady = Pod("steady", [Container("main", image, ["sh", "-c", count])], grace_seconds=2)
    ending = Pod(
        "ending",
        [
            Container(
                "main",
                image,
                ["sh", "-c", "while [ ! -e /work/go ]; do sleep 0.1; done; exit 11"],
                volume_mounts={"/work": "shared"},
            )
        ],
        volumes=["shared"],
        restart=Restart.NEVER,
    )
    deaf = Pod(
        "deaf",
        [Container("main", image, ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"])],
        grace_seconds=5,
    )
    await kubelet.run(steady, ending, deaf)
    before = {pod.uid: kubelet.status(pod) for pod in (steady, ending, deaf)}
    await kubelet.until(lambda: Path(before[deaf.uid].containers[0].log_path).read_bytes() != b"")

    # Deletion of one has begun when the runtime is killed; another ends while it is away.
    deletion = asyncio.create_task(kubelet.manager.terminate(deaf))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(node.kill)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await deletion
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    (kubelet.places.volume(ending, "shared") / "go").touch()
    assert await kubelet.step() == []
    assert kubelet.unreachable == 1
    log = Path(before[steady.uid].containers[0].log_path)
    rotated = log.with_name(f"{log.name}.20260101-000000")
    log.rename(rotated)  # a rotation that nobody was there for
    await asyncio.sleep(1)
    await asyncio.to_thread(node.start)
    await kubelet.until(
        lambda: [each.state for each in kubelet.status(ending).containers] == [State.CONTAINER_EXITED]
    )
    await kubelet.rotation.rotate_all()
    # And now the kubelet is another one, too.
    await kubelet.restart()
    await kubelet.step()
    assert set(kubelet.cache.statuses) == set(before)
    for pod in (steady, ending, deaf):
        status = kubelet.status(pod)
        (sandbox,), (container,) = status.sandboxes, status.containers
        (old_sandbox,), (old,) = before[pod.uid].sandboxes, before[pod.uid].containers
        assert (sandbox.id, container.id) == (old_sandbox.id, old.id)
        assert (container.created_at, container.started_at) == (old.created_at, old.started_at)
        assert pod is ending or status.ips == before[pod.uid].ips
    ended = kubelet.status(ending).containers[0]
    assert (ended.exit_code, ended.reason) == (11, "Error")
    assert kubelet.is_running(steady)
    assert kubelet.is_running(deaf)
    (last,) = await kubelet.delete(deaf)
    assert last.containers[0].exit_code == 137

    last = await kubelet.manager.terminate(steady)
    ticks = container_logs.numbers(container_logs.read_all(log), "tick ")
    assert ticks == list(range(1, len(ticks) + 1)), "lines were lost, doubled or mixed up"
    assert len(container_logs.read(log)) > 0
    assert len(container_logs.read(rotated)) > 5, "the log stood still while there was no runtime"


async def test_a_runtime_that_loses_nothing_is_heard(kubelet: Kubelet, node: Node) -> None:
    """EventedPLEG: what relists would find out is told at once, and with the whole of the pod."""
    kubelet.evented.start()
    image = node.images.shell
    pod = Pod(
        "heard",
        [
            Container("main", image, ["sh", "-c", "exec sleep 1000"]),
            Container("short", image, ["sh", "-c", "exit 3"]),
        ],
        restart=Restart.NEVER,
        grace_seconds=2,
    )
    kubelet.pods[pod.uid] = pod
    done = await kubelet.manager.sync(pod, kubelet.status(pod))
    main, short = done.started["main"], done.started["short"]

    heard = kubelet.evented.heard_of
    stopped = await heard(short, EventType.CONTAINER_STOPPED_EVENT)
    for one in (done.sandbox, main, short):
        await heard(one, EventType.CONTAINER_CREATED_EVENT)
        started = await heard(one, EventType.CONTAINER_STARTED_EVENT)
        assert started.pod_sandbox_status.metadata.uid == pod.uid
    states = {each.id: each for each in stopped.containers_statuses}
    assert (states[short].state, states[short].exit_code) == (State.CONTAINER_EXITED, 3)
    assert states[main].state == State.CONTAINER_RUNNING
    assert states[short].finished_at <= stopped.created_at < states[short].finished_at + 5 * 10**9
    # What was heard is what a relist finds.
    heard_status, listed = kubelet.status(pod), await kubelet.manager.status_of(pod)
    assert heard_status.containers == listed.containers
    assert heard_status.sandboxes == listed.sandboxes
    # A status with a time has the containers with it.
    answer = await kubelet.runtime("PodSandboxStatus", pod_sandbox_id=done.sandbox)
    assert answer.timestamp >= stopped.created_at
    assert {each.id for each in answer.containers_statuses} == {main, short}

    await kubelet.delete(pod)
    deleted = await heard(done.sandbox, EventType.CONTAINER_DELETED_EVENT)
    assert deleted.pod_sandbox_status.metadata.uid == pod.uid
    for one in (main, short):
        await heard(one, EventType.CONTAINER_DELETED_EVENT)
    await heard(main, EventType.CONTAINER_STOPPED_EVENT)
    await heard(done.sandbox, EventType.CONTAINER_STOPPED_EVENT)
    assert pod.uid not in kubelet.cache.statuses
    times = [event.created_at for event in kubelet.evented.heard]
    assert times == sorted(times)
