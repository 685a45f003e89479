"""What a kubelet does for a node that runs: logs are rotated, images and remains are collected, usage is looked at."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from cri.api.runtime import v1
from tests.kubelet import container_logs
from tests.kubelet.images import UNUSED_SIZE
from tests.kubelet.kubelet import Kubelet
from tests.kubelet.node import Node
from tests.kubelet.specs import Container, Pod
from tests.kubelet.statuses import State
from tests.kubelet.summary import PodFigures

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

SLEEP = ("sleep", "1000")
AGE = 60 * 10**9
"""Nanoseconds that a figure may be old."""
CHATTY = """\
n=0
trap 'echo last $n; exit 0' TERM
while :; do n=$((n+1)); echo line $n; [ $((n % 20)) = 0 ] && sleep 0.1; done
"""


async def test_logs_are_rotated_and_none_of_their_lines_is_lost(kubelet: Kubelet, node: Node) -> None:
    pod = Pod(
        "chatty",
        [
            Container("chatty", node.images.shell, ["sh", "-c", CHATTY]),
            Container("quiet", node.images.shell, ["sh", "-c", "echo once; exec sleep 1000"]),
        ],
        grace_seconds=10,
    )
    kubelet.rotation.max_size, kubelet.rotation.max_files = 4096, 10
    await kubelet.run(pod)
    chatty, quiet = (kubelet.status(pod).container(name) for name in ("chatty", "quiet"))
    log, quiet_log = Path(chatty.log_path), Path(quiet.log_path)
    rounds = 4
    for _ in range(rounds):
        while log.stat().st_size < kubelet.rotation.max_size:
            await asyncio.sleep(0.05)
        before = log.stat().st_ino
        assert await kubelet.rotation.rotate_all() == [chatty.id]
        assert log.stat().st_ino != before
        await asyncio.sleep(1)  # for another name
    # A rotation that was cut short after its first half.
    log.rename(log.with_name(f"{log.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"))
    assert await kubelet.rotation.rotate_all() == []
    assert log.exists()
    # As a log of a container that prints nothing may have been taken away.
    quiet_log.unlink()
    await kubelet.rotation.rotate_all()
    assert quiet_log.read_bytes() == b""

    status = await kubelet.manager.terminate(pod)
    ended = status.container("chatty")
    assert (ended.exit_code, ended.reason) == (0, "Completed")
    names = [path.name for path in container_logs.rotated(log)]
    assert len(names) == rounds + 1
    assert [name.endswith(".gz") for name in names] == [True] * (rounds - 1) + [False] * 2
    lines = container_logs.read_all(log)
    counted = container_logs.numbers(lines, "line ")
    assert counted == list(range(1, len(counted) + 1)), "lines were lost, doubled or mixed up"
    assert lines[-1].text == f"last {counted[-1]}"
    times = [line.nanoseconds for line in lines]
    assert times == sorted(times)
    assert ended.started_at <= times[0]
    assert times[-1] <= ended.finished_at


async def test_images_that_nobody_needs_are_removed(kubelet: Kubelet, node: Node) -> None:
    pod = Pod("user", [Container("main", node.images.shell, SLEEP)])
    await kubelet.run(pod)
    config = v1.PodSandboxConfig()
    unused = await kubelet.manager.ensure_image(node.images.unused, config)
    images = await kubelet.images.detect()
    used = kubelet.status(pod).containers[0].image_id
    assert unused in images
    assert node.images.unused in images[unused].repo_tags
    assert images[unused].size >= UNUSED_SIZE
    full = await kubelet.images.filesystem()
    assert abs(time.time_ns() - full.timestamp) < 60 * 10**9
    assert Path(full.fs_id.mountpoint).is_dir()

    freed = await kubelet.images.free(1 << 50)
    assert freed >= UNUSED_SIZE
    after = await kubelet.images.detect()
    assert unused not in after
    assert used in after, "an image in use is not removed"
    emptied = await kubelet.images.filesystem()
    assert full.used_bytes.value - emptied.used_bytes.value >= UNUSED_SIZE
    assert emptied.inodes_used.value < full.inodes_used.value

    await kubelet.runtime("RemoveImage", image=v1.ImageSpec(image=unused))  # once more
    assert not (await kubelet.runtime("ImageStatus", image=v1.ImageSpec(image=unused))).HasField("image")
    assert kubelet.is_running(pod)
    assert await kubelet.manager.ensure_image(node.images.unused, config) == unused, "it can be pulled again"


async def test_eviction_knows_what_pods_use(kubelet: Kubelet, node: Node) -> None:
    image = node.images.shell
    busy = Container("busy", image, ["sh", "-c", "while :; do :; done"], cpu_limit=500)
    written = 2 << 20
    writer = Container(
        "writer",
        image,
        ["sh", "-c", f"dd if=/dev/zero of=/tmp/written bs={written} count=1; exec sleep 1000"],
    )
    pods = [Pod("busy", [busy, Container("idle", image, SLEEP)]), Pod("writer", [writer])]
    await kubelet.run(*pods)
    began = time.time_ns()

    def is_fresh(summary: dict[str, PodFigures]) -> bool:
        """Whether all of it is from after the start, and the busy container was seen twice."""
        return (
            len(summary) == len(pods)
            and all(each.pod.linux.cpu.timestamp > began for each in summary.values())
            and summary[pods[1].uid].containers["writer"].writable_layer.used_bytes.value >= written
            and "busy" in summary[pods[0].uid].cores
        )

    # A runtime looks at its pods in intervals of its own.
    deadline = time.monotonic() + 60
    while not is_fresh(summary := await kubelet.statistics.summary()):
        assert time.monotonic() < deadline, summary
        await asyncio.sleep(0.5)
    now = time.time_ns()
    assert set(summary) == {pod.uid for pod in pods}
    layer = summary[pods[1].uid].containers["writer"].writable_layer
    assert layer.inodes_used.value >= 1
    assert Path(layer.fs_id.mountpoint).is_dir()
    for pod in pods:
        figures = summary[pod.uid]
        assert set(figures.containers) == {each.name for each in pod.containers}
        of_pod = figures.pod.linux
        assert figures.pod.attributes.metadata.name == pod.name
        assert of_pod.process.process_count.value >= len(pod.containers)
        (interface,) = [of_pod.network.default_interface.name]
        assert interface == "eth0"
        total = 0
        for name, stats in figures.containers.items():
            assert stats.attributes.metadata.name == name
            assert stats.attributes.labels["io.kubernetes.pod.uid"] == pod.uid
            for timestamp in (stats.cpu.timestamp, stats.memory.timestamp, stats.writable_layer.timestamp):
                assert began - AGE < timestamp <= now
            assert stats.memory.working_set_bytes.value > 0
            total += stats.cpu.usage_core_nano_seconds.value
        assert of_pod.cpu.usage_core_nano_seconds.value >= total * 0.95
        assert of_pod.memory.working_set_bytes.value > 0
    # Half a CPU is what the busy one may have, however little the node has left for it.
    cores = summary[pods[0].uid].cores["busy"]
    assert 0 < cores < 0.6
    assert summary[pods[0].uid].containers["busy"].cpu.usage_nano_cores.value < 600_000_000

    containers = await kubelet.statistics.containers()
    assert set(containers) == {each.id for pod in pods for each in kubelet.status(pod).containers}
    sandbox = kubelet.status(pods[0]).sandboxes[0].id
    of_pod, some = await kubelet.statistics.of_pod(sandbox)
    assert of_pod.attributes.id == sandbox
    assert {each.attributes.metadata.name for each in some} == {"busy", "idle"}

    metrics = await kubelet.statistics.metrics()
    names = {each.name for pod in pods for each in pod.containers}
    for name in ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes"):
        shown = {label for labels in metrics[name] for label in labels}
        assert names | {pod.name for pod in pods} <= shown
        assert all(value >= 0 for value in metrics[name].values())


async def test_lists_come_in_pieces_too(kubelet: Kubelet, node: Node) -> None:
    """What the gate CRIListStreaming does instead of lists."""
    pods = [
        Pod(f"listed{number}", [Container(name, node.images.shell, SLEEP) for name in "ab"])
        for number in range(3)
    ]
    await kubelet.run(*pods)
    for plain, field, streamed in (
        ("ListPodSandbox", "items", "StreamPodSandboxes"),
        ("ListContainers", "containers", "StreamContainers"),
        ("ListContainerStats", "stats", "StreamContainerStats"),
        ("ListPodSandboxStats", "stats", "StreamPodSandboxStats"),
        ("ListImages", "images", "StreamImages"),
    ):
        pieces = [message async for message in kubelet.runtime.stream(streamed)]
        ((what, _),) = pieces[0].ListFields()
        some = [item for piece in pieces for item in getattr(piece, what.name)]
        every = getattr(await kubelet.runtime(plain), field)
        about = [[getattr(one, "attributes", one).id for one in each] for each in (some, every)]
        assert about[0] == about[1] != []


async def test_a_pod_is_resized_in_place(kubelet: Kubelet, node: Node) -> None:
    def sized(cpu: int, megabytes: int) -> Container:
        memory = megabytes << 20
        return Container(
            *("main", node.images.shell, SLEEP),
            cpu_request=cpu,
            cpu_limit=cpu,
            memory_request=memory,
            memory_limit=memory,
        )

    pod = Pod("resized", [sized(200, 64)])
    await kubelet.run(pod)
    before = kubelet.status(pod)
    for now, then, order in (
        (sized(200, 64), sized(400, 96), ["UpdatePodSandboxResources", "UpdateContainerResources"] * 2),
        (sized(400, 96), sized(300, 80), ["UpdateContainerResources", "UpdatePodSandboxResources"] * 2),
    ):
        mark = len(kubelet.runtime.calls)
        await kubelet.manager.resize(
            dataclasses.replace(pod, containers=[now]), dataclasses.replace(pod, containers=[then]), before
        )
        assert kubelet.runtime.calls[mark:] == order
        status = (await kubelet.manager.status_of(pod)).container("main")
        assert (status.id, status.state) == (before.containers[0].id, State.CONTAINER_RUNNING)
        assert status.started_at == before.containers[0].started_at
        assert status.resources.linux.cpu_quota == then.cpu_limit * 100
        assert status.resources.linux.memory_limit_in_bytes == then.memory_limit
    assert await kubelet.step() == [], "nothing has been started again"
