"""What the RPCs say that containers and pods use, beside what the kernel says in the same moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import grpc
import pytest

from cri.api.runtime import v1
from tests.node.conftest import Daemon, running_daemon

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

INTERVAL = 0.5
NEAR = 0.05
MIB = 1 << 20
BURN = ("sh", "-c", "while :; do :; done")


@pytest.fixture(scope="module")
def node(registry: str) -> Iterator[Daemon]:
    with running_daemon(
        registry, f"crst{os.getpid()}", settings=f"[stats]\ninterval = {INTERVAL}\n"
    ) as daemon:
        daemon.pull()
        yield daemon


@pytest.fixture(autouse=True)
def emptied(node: Daemon) -> Iterator[None]:
    yield
    node.remove_all()


class Recorder:
    """Reads a figure of the kernel's again and again, and tells what it was at a time."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._seen: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._record)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _record(self) -> None:
        while not self._stop.wait(0.02):
            self._seen.append((time.time_ns(), self._read()))

    def at(self, moment: int) -> float:
        """What the figure was, between two readings."""
        deadline = time.monotonic() + 5
        while not self._seen or self._seen[-1][0] < moment:
            assert time.monotonic() < deadline, "nothing was recorded"
            time.sleep(0.01)
        assert self._seen[0][0] <= moment, "the sample is older than the record"
        after = next(index for index, (when, _) in enumerate(self._seen) if when >= moment)
        (first, low), (second, high) = self._seen[max(after - 1, 0)], self._seen[after]
        return low if second == first else low + (high - low) * (moment - first) / (second - first)


def near(told: float, kernel: float, least: float = 0.0) -> bool:
    """Within five per cent; `least`: a difference that is nothing."""
    return abs(told - kernel) <= max(NEAR * kernel, least)


def group(node: Daemon, container: str, controller: str) -> Path:
    """The cgroup with a container's limits."""
    for line in Path(f"/proc/{node.pid(container)}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path("/sys/fs/cgroup", controller, path.lstrip("/")).parent
    pytest.skip(f"no cgroup of version 1 for {controller}")


def number(path: Path) -> int:
    return int(path.read_text())


def stats(node: Daemon, container: str) -> v1.ContainerStats:
    return node.client("ContainerStats", v1.ContainerStatsRequest(container_id=container)).stats


def pod_stats(node: Daemon, pod: str) -> v1.PodSandboxStats:
    return node.client("PodSandboxStats", v1.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats


def after(node: Daemon, container: str, seconds: float) -> v1.ContainerStats:
    """What is told of a container some time from now on."""
    until = time.time_ns() + int(seconds * 1e9)
    while True:
        found = stats(node, container)
        if found.cpu.timestamp > until:
            return found
        time.sleep(0.05)


def test_processor_time_and_its_rate(node) -> None:
    pod = node.pod("burner")
    burning, idle = node.container(pod, *BURN), node.container(pod, "sleep", "3600", name="idle")
    directory = group(node, burning, "cpuacct")
    with (
        Recorder(lambda: number(directory / "cpuacct.usage")) as record,
        Recorder(lambda: number(directory.parent / "cpuacct.usage")) as whole,
    ):
        time.sleep(3)
        told = after(node, burning, 0.5)
        assert near(told.cpu.usage_core_nano_seconds.value, record.at(told.cpu.timestamp), 20e6)
        now = told.cpu.timestamp
        window = record.at(now) - record.at(now - int(INTERVAL * 1.5e9))
        assert near(told.cpu.usage_nano_cores.value, window / (INTERVAL * 1.5), 1e8)
        of_pod = pod_stats(node, pod).linux
        assert near(of_pod.cpu.usage_core_nano_seconds.value, whole.at(of_pod.cpu.timestamp), 20e6)
        assert of_pod.cpu.usage_core_nano_seconds.value >= told.cpu.usage_core_nano_seconds.value
    resting = after(node, idle, 1.0)
    assert resting.cpu.usage_nano_cores.value < 5e6
    assert {one.attributes.id for one in of_pod.containers} == {burning, idle}


def test_pressure(node) -> None:
    pod = node.pod("pressed")
    quota = v1.LinuxContainerResources(cpu_period=100_000, cpu_quota=10_000)
    container = node.container(pod, *BURN, linux=v1.LinuxContainerConfig(resources=quota))
    lines = Path(f"/proc/{node.pid(container)}/cgroup").read_text().splitlines()
    (path,) = (line.removeprefix("0::/") for line in lines if line.startswith("0::"))
    found = [Path(top, path).parent / "cpu.pressure" for top in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")]
    file = next((one for one in found if one.exists()), None)
    if file is None:
        pytest.skip("this kernel has no PSI")

    def total() -> int:
        return int(file.read_text().splitlines()[0].rpartition("total=")[2]) * 1000

    with Recorder(total) as record:
        time.sleep(2)
        told = after(node, container, 0.5)
        kernel = record.at(told.cpu.timestamp)
    assert kernel > 1e8, "it was throttled"
    assert near(told.cpu.psi.some.total, kernel, 30e6)
    assert told.memory.psi is not None
    assert told.io.timestamp == told.cpu.timestamp


def test_memory(node) -> None:
    limit = 128 * MIB
    pod = node.pod("holder")
    holding = node.container(
        pod,
        "sh",
        "-c",
        "x=$(head -c 30000000 /dev/zero | tr '\\0' x); head -c 20000000 /dev/zero > /file; cat /file > /dev/null; echo ready; sleep 3600; :",
        linux=v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(memory_limit_in_bytes=limit)),
    )
    directory = group(node, holding, "memory")
    while "ready" not in node.log_of(holding).read_text():
        time.sleep(0.1)
    told = after(node, holding, 0.1)
    stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    used = number(directory / "memory.usage_in_bytes")
    assert used > 45_000_000
    working = used - int(stat["total_inactive_file"])
    assert near(told.memory.usage_bytes.value, used)
    assert near(told.memory.working_set_bytes.value, working)
    assert near(told.memory.rss_bytes.value, int(stat["total_rss"]))
    assert told.memory.rss_bytes.value > 28_000_000
    assert near(told.memory.available_bytes.value, limit - working)
    faults = int(stat["total_pgfault"]) - int(stat["total_pgmajfault"])
    assert near(told.memory.page_faults.value, faults)
    assert pod_stats(node, pod).linux.memory.available_bytes is None


def test_the_writable_layer(node) -> None:
    pod = node.pod("writer")
    container = node.container(pod, "sleep", "3600")
    # At once, though nobody has looked before.
    assert stats(node, container).writable_layer.used_bytes.value < MIB
    node.exec(
        container, "sh", "-c", "mkdir /d; for i in 1 2 3 4; do head -c 5000000 /dev/zero > /d/$i; done; sync"
    )
    done = time.time_ns()
    while (told := stats(node, container).writable_layer).timestamp < done:
        time.sleep(0.1)
    upper = node.base / "state/containers" / container / "upper"
    counted = subprocess.run(["du", "-s", "-B1", upper], check=True, capture_output=True, text=True)
    assert near(told.used_bytes.value, int(counted.stdout.split()[0]))
    assert told.used_bytes.value > 19_000_000
    assert told.inodes_used.value == sum(1 for _ in upper.rglob("*")) + 1
    assert Path(told.fs_id.mountpoint).is_dir()
    filesystem = node.client("ImageFsInfo", v1.ImageFsInfoRequest())
    (layers,) = filesystem.container_filesystems
    assert near(layers.used_bytes.value, told.used_bytes.value, 16384)
    (images,) = filesystem.image_filesystems
    assert images.used_bytes.value > 500_000
    snapshots = node.base / "state/snapshots"
    counted = subprocess.run(["du", "-s", "-B1", snapshots], check=True, capture_output=True, text=True)
    assert near(images.used_bytes.value, int(counted.stdout.split()[0]), 65536)
    assert near(images.inodes_used.value, len({path.lstat().st_ino for path in snapshots.rglob("*")}), 8)


def test_the_network_of_a_pod(node) -> None:
    pod = node.pod("talker")
    container = node.container(pod, "sleep", "3600")
    request = v1.PodSandboxStatusRequest(pod_sandbox_id=pod)
    address = node.client("PodSandboxStatus", request).status.network.ip
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(2000):
            sender.sendto(bytes(1000), (address, 9))
    node.exec(
        container, "ping", "-c", "3", "-i", "0.1", "-s", "1000", node.subnets[0].replace("0.0/16", "0.1")
    )
    done = time.time_ns()
    while (told := pod_stats(node, pod).linux.network).timestamp < done:
        time.sleep(0.1)
    lines = Path(f"/proc/{node.pid(container)}/net/dev").read_text().splitlines()
    (counters,) = (line.split() for line in lines if line.split()[0] == "eth0:")
    eth0 = told.default_interface
    assert (eth0.name, told.interfaces) == ("eth0", [])
    assert eth0.rx_bytes.value > 2_000_000
    assert near(eth0.rx_bytes.value, int(counters[1]))
    assert near(eth0.tx_bytes.value, int(counters[9]))
    assert eth0.tx_bytes.value > 3000


def test_a_pod_on_the_nodes_network_has_none_of_its_own(node) -> None:
    options = v1.NamespaceOption(network=v1.NamespaceMode.NODE)
    pod = node.pod("host", security_context=v1.LinuxSandboxSecurityContext(namespace_options=options))
    node.container(pod)
    told = pod_stats(node, pod).linux
    assert told.network is None
    assert told.memory.usage_bytes.value > 0


def test_processes_are_counted_and_not_their_threads(node) -> None:
    pod = node.pod("many")
    node.container(pod, "sh", "-c", "sleep 3600 & sleep 3600 & sleep 3600; :")
    node.container(pod, "sleep", "3600", name="one")
    deadline = time.monotonic() + 5
    while (count := pod_stats(node, pod).linux.process.process_count.value) != 5:
        assert time.monotonic() < deadline, count
        time.sleep(0.1)


def test_pods_that_share_a_group_have_what_their_containers_have(node) -> None:
    parent = f"/stats-{os.getpid()}"
    burning, idle = (node.pod(name, cgroup_parent=parent) for name in ("burning", "idle"))
    node.container(burning, *BURN)
    node.container(idle)
    time.sleep(1)
    figures = [pod_stats(node, pod).linux.cpu.usage_core_nano_seconds.value for pod in (burning, idle)]
    assert figures[0] > 3 * figures[1]
    node.remove_all()
    for directory in Path("/sys/fs/cgroup").glob(f"*{parent}"):
        directory.rmdir()


def test_lists_filters_and_streams_say_the_same(node) -> None:
    pods = [node.pod(f"pod{number}") for number in range(3)]
    containers = [node.container(pod) for pod in pods]
    exited = node.container(pods[0], "true", name="exited")
    node.wait(exited, v1.ContainerState.CONTAINER_EXITED)
    node.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pods[2]))

    def listed(**wanted) -> dict[str, set[str]]:
        request = v1.ListPodSandboxStatsRequest(filter=v1.PodSandboxStatsFilter(**wanted))
        found = node.client("ListPodSandboxStats", request).stats
        return {one.attributes.id: {each.attributes.id for each in one.linux.containers} for one in found}

    assert listed() == {pods[0]: {containers[0]}, pods[1]: {containers[1]}}
    assert listed(id=pods[1][:12]) == {pods[1]: {containers[1]}}
    assert listed(label_selector={"no": "such"}) == {}
    with pytest.raises(grpc.RpcError, match="only ready ones have statistics"):
        pod_stats(node, pods[2])
    with pytest.raises(grpc.RpcError, match="only running ones have statistics"):
        stats(node, exited)
    request = v1.ListContainerStatsRequest(filter=v1.ContainerStatsFilter(pod_sandbox_id=pods[0]))
    (one,) = node.client("ListContainerStats", request).stats
    assert one.attributes.id == containers[0]


def test_containers_that_end_meanwhile(node) -> None:
    pod = node.pod("short")
    stop = threading.Event()
    errors: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                node.client("ListContainerStats", v1.ListContainerStatsRequest())
                node.client("ListPodSandboxStats", v1.ListPodSandboxStatsRequest())
            except grpc.RpcError as error:
                errors.append(str(error))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for number_ in range(20):
        container = node.container(pod, "true", name=f"c{number_}")
        node.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))
    stop.set()
    for asker in askers:
        asker.join()
    assert errors == []


def test_a_new_daemon_goes_on_counting(daemon: Daemon) -> None:
    daemon.pull()
    pod = daemon.pod("stays")
    container = daemon.container(pod, *BURN)
    time.sleep(1)
    before = pod_stats(daemon, pod).linux
    daemon.end(signal.SIGKILL)
    daemon.start()
    after_ = pod_stats(daemon, pod).linux
    assert after_.cpu.usage_core_nano_seconds.value > before.cpu.usage_core_nano_seconds.value
    assert after_.network.default_interface.rx_bytes.value >= before.network.default_interface.rx_bytes.value
    assert [one.attributes.id for one in after_.containers] == [container]


def test_a_list_that_no_message_can_have(node) -> None:
    """It is refused with the name of the call that sends it in pieces; a few large ones are sent."""
    pod = node.pod("fat")
    annotations = {f"a{number}": "x" * 100_000 for number in range(20)}
    for number_ in range(9):
        node.container(pod, "sleep", "3600", name=f"c{number_}", annotations=annotations)
    with pytest.raises(grpc.RpcError, match="StreamContainerStats"):
        node.client("ListContainerStats", v1.ListContainerStatsRequest())
    with pytest.raises(grpc.RpcError, match=f"sandbox {pod} has .* bytes in a list"):
        node.client("ListPodSandboxStats", v1.ListPodSandboxStatsRequest())
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_nothing_grows_with_the_samples(node) -> None:
    """A thousand of them, and a hundred containers that come and go."""
    pod = node.pod("long")
    # What is read of both is open by then.
    after(node, node.container(pod), 0)
    asked = time.time_ns()
    while pod_stats(node, pod).linux.cpu.timestamp < asked:
        time.sleep(0.05)
    before = resident(node), descriptors(node)
    for number_ in range(100):
        container = node.container(pod, "sleep", "3600", name=f"c{number_}")
        stats(node, container)
        node.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))
    for _ in range(1000):
        node.client("ListPodSandboxStats", v1.ListPodSandboxStatsRequest())
    deadline = time.monotonic() + 10
    while descriptors(node) > before[1] + 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert descriptors(node) <= before[1] + 8
    assert resident(node) < before[0] + 16 * MIB


def descriptors(node: Daemon) -> int:
    return sum(1 for _ in Path(f"/proc/{node.process.pid}/fd").iterdir())


def resident(node: Daemon) -> int:
    return int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
