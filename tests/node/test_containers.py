"""What a client of the real daemon sees of containers: processes, output, logs, limits."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]


def interfaces() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


STARTED = v1.ContainerState.CONTAINER_RUNNING
EXITED = v1.ContainerState.CONTAINER_EXITED


@pytest.fixture(scope="module")
def node(registry: str, module_daemon):
    module_daemon.pull()
    return module_daemon


@pytest.fixture
def pod(node):
    """A pod of its own for a test, removed afterwards."""
    pod = node.pod(f"pod{time.monotonic_ns()}")
    yield pod
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_exec_sync_tells_output_and_code(node, pod):
    container = node.container(pod)
    answer = node.exec(container, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 7)
    assert node.exec(container, "sh", "-c", "kill -9 $$").exit_code == 137


def test_exec_timeout_kills_everything_it_started(node, pod):
    container = node.container(pod)
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        node.exec(
            container, "sh", "-c", "sleep 4321 & (sleep 4322 & ) ; setsid sleep 4323 & sleep 4324", timeout=1
        )
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 1 <= time.monotonic() - began < 4
    deadline = time.monotonic() + 5
    while (found := node.exec(container, "sh", "-c", "ps | grep 'sleep 43[2]' || true").stdout) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert found == b""


def test_exec_does_not_wait_for_a_child_that_keeps_the_pipe(node, pod):
    container = node.container(pod)
    began = time.monotonic()
    answer = node.exec(container, "sh", "-c", "echo first; sleep 1000 & exit 3", timeout=30)
    assert (answer.stdout, answer.exit_code) == (b"first\n", 3)
    assert time.monotonic() - began < 5


def test_exec_output_is_bounded(node, pod):
    container = node.container(pod)
    answer = node.exec(container, "sh", "-c", "head -c 20000000 /dev/zero; echo done >&2", timeout=60)
    assert 15_000_000 < len(answer.stdout) < 16 * 1024 * 1024
    assert answer.exit_code == 0


def test_exec_of_what_is_not_there(node, pod):
    container = node.container(pod)
    with pytest.raises(grpc.RpcError, match="executable file not found"):
        node.exec(container, "nosuch")
    with pytest.raises(grpc.RpcError, match="cmd is empty"):
        node.exec(container)


def test_environment_may_hold_any_bytes(node, pod):
    container = node.container(pod, envs=[v1.KeyValue(key="BYTES", value=b"\xff\xfe ok")])
    assert node.exec(container, "sh", "-c", "echo $BYTES").stdout == b"\xff\xfe ok\n"
    assert node.status(container).status.state == STARTED
    info = node.status(container, verbose=True).info["info"]
    assert "BYTES" in info
    assert " ok" not in info, "values may be secrets"


def test_program_that_is_not_there(node, pod):
    container = node.container(pod, "/nosuch", start=False)
    with pytest.raises(grpc.RpcError, match="no such file or directory"):
        node.client("StartContainer", v1.StartContainerRequest(container_id=container))
    status = node.status(container).status
    assert (status.state, status.reason, status.exit_code) == (EXITED, "StartError", 128)


def test_log_has_both_streams_and_partial_lines(node, pod):
    script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; printf end"
    container = node.container(pod, "sh", "-c", script)
    node.wait(container, EXITED)
    lines = [line.split(" ", 3) for line in node.log_of(container).read_text().splitlines()]
    by_stream = {name: [line[2:] for line in lines if line[1] == name] for name in ("stdout", "stderr")}
    assert by_stream["stderr"] == [["F", "err"]]
    first, long1, long2, last = by_stream["stdout"]
    assert first == ["F", "out"]
    assert (long1[0], long2[0]) == ("P", "F")
    assert long1[1] + long2[1] == "x" * 20000
    assert last == ["P", "end"]


def test_rotation_loses_and_tears_nothing(node, pod):
    count = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo line $n; done"
    container = node.container(pod, "sh", "-c", count)
    log = node.log_of(container)
    parts = []
    for number in range(10):
        time.sleep(0.05)
        parts.append(log.with_name(f"{log.name}.{number}"))
        log.rename(parts[-1])
        node.client("ReopenContainerLog", v1.ReopenContainerLogRequest(container_id=container))
    node.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=20))
    assert node.status(container).status.exit_code == 0
    time.sleep(0.5)  # the rest of its output may still be on its way
    text = "".join(part.read_text() for part in (*parts, log))
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert len(numbers) > 100
    assert numbers == list(range(1, len(numbers) + 1))


def test_memory_limit(node, pod):
    resources = v1.LinuxContainerResources(
        memory_limit_in_bytes=20_000_000, memory_swap_limit_in_bytes=20_000_000
    )
    eat = "x=a; while true; do x=$x$x; done"
    container = node.container(pod, "sh", "-c", eat, linux=v1.LinuxContainerConfig(resources=resources))
    status = node.wait(container, EXITED, patience=30)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    assert status.resources.linux.memory_limit_in_bytes == 20_000_000


def test_limits_can_change(node, pod):
    container = node.container(
        pod, linux=v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(cpu_shares=512))
    )
    update = v1.LinuxContainerResources(
        memory_limit_in_bytes=64_000_000, cpu_quota=20_000, cpu_period=100_000
    )
    node.client(
        "UpdateContainerResources", v1.UpdateContainerResourcesRequest(container_id=container, linux=update)
    )
    limits = node.status(container).status.resources.linux
    assert (limits.memory_limit_in_bytes, limits.cpu_quota, limits.cpu_shares) == (64_000_000, 20_000, 512)
    began = time.monotonic()
    count = "n=0; while [ $n -lt 150000 ]; do n=$((n+1)); done"
    assert node.exec(container, "sh", "-c", count, timeout=60).exit_code == 0
    stats = node.client("ContainerStats", v1.ContainerStatsRequest(container_id=container)).stats
    share = stats.cpu.usage_core_nano_seconds.value / 1e9 / (time.monotonic() - began)
    assert share < 0.5, "the quota of a fifth is not enforced"
    assert stats.memory.available_bytes.value < 64_000_000


def test_stop_gives_the_grace_and_then_kills(node, pod):
    polite = node.container(
        pod, "sh", "-c", "trap 'echo bye; exit 5' TERM; while true; do sleep 0.1; done", name="p"
    )
    stubborn = node.container(pod, "sh", "-c", "trap '' TERM; while true; do sleep 0.1; done", name="s")
    time.sleep(0.3)
    node.client("StopContainer", v1.StopContainerRequest(container_id=polite, timeout=20))
    assert node.status(polite).status.exit_code == 5
    began = time.monotonic()
    node.client("StopContainer", v1.StopContainerRequest(container_id=stubborn, timeout=1))
    assert 1 <= time.monotonic() - began < 3
    assert node.status(stubborn).status.exit_code == 137


def test_lists_filter(node, pod):
    running = node.container(pod, name="running", labels={"app": "a"})
    created = node.container(pod, name="created", start=False, labels={"app": "b"})

    def listed(**wanted: object) -> set[str]:
        request = v1.ListContainersRequest(filter=v1.ContainerFilter(pod_sandbox_id=pod, **wanted))
        return {item.id for item in node.client("ListContainers", request).containers}

    assert listed() == {running, created}
    assert listed(state=v1.ContainerStateValue(state=STARTED)) == {running}
    assert listed(label_selector={"app": "b"}) == {created}
    assert listed(id=created[:13]) == {created}
    assert listed(id="0" * 64) == set()
    sandboxes = node.client(
        "ListPodSandbox", v1.ListPodSandboxRequest(filter=v1.PodSandboxFilter(id=pod))
    ).items
    assert [item.id for item in sandboxes] == [pod]


def test_links_in_the_way_of_mounts_do_not_lead_outside(node, pod, tmp_path):
    """The container's own root is hostile: what it links to the node must be taken inside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "escape").symlink_to(outside)
    mounts = [
        v1.Mount(container_path="/volume", host_path=str(tmp_path / "volume")),
        v1.Mount(container_path="/volume/escape/deep", host_path="/etc", readonly=True),
    ]
    container = node.container(pod, mounts=mounts)
    assert node.exec(container, "ls", f"{outside}/deep").exit_code == 0
    assert list(outside.iterdir()) == []


def test_volumes(node, pod, tmp_path):
    (tmp_path / "rw").mkdir()
    (tmp_path / "ro").mkdir()
    (tmp_path / "file").write_text("content")
    mounts = [
        v1.Mount(container_path="/rw", host_path=str(tmp_path / "rw")),
        v1.Mount(container_path="/ro", host_path=str(tmp_path / "ro"), readonly=True),
        v1.Mount(container_path="/etc/one/file", host_path=str(tmp_path / "file"), readonly=True),
        v1.Mount(container_path="/dev/termination-log", host_path=str(tmp_path / "file")),
    ]
    container = node.container(pod, mounts=mounts)
    assert (
        node.exec(container, "sh", "-c", "echo hi > /rw/f && ! touch /ro/f && cat /etc/one/file").stdout
        == b"content"
    )
    assert (tmp_path / "rw/f").read_text() == "hi\n"
    node.exec(container, "sh", "-c", "echo ended > /dev/termination-log")
    assert (tmp_path / "file").read_text() == "ended\n"


def test_pods_reach_each_other_and_nothing_of_the_node(node, pod):
    server = node.container(pod, "sh", "-c", "while true; do echo hello | nc -l -p 80; done", name="server")
    other = node.pod(f"client{time.monotonic_ns()}")
    client = node.container(other)
    address = node.client(
        "PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod)
    ).status.network.ip
    time.sleep(0.3)
    assert node.exec(client, "sh", "-c", f"nc -w 2 {address} 80 </dev/null").stdout == b"hello\n"
    assert node.exec(server, "hostname").stdout.startswith(b"pod")
    assert Path(f"/proc/{node.pid(client)}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=other))


def test_many_pods_at_once_leave_nothing(node):
    """Ten threads, thirty pods; the fixture then looks for traces."""
    before = interfaces()
    failures: list[BaseException] = []

    def life(number: int) -> None:
        try:
            for turn in range(3):
                pod = node.pod(f"many{number}-{turn}")
                container = node.container(pod, name="c")
                assert node.exec(container, "true").exit_code == 0
                node.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
                node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=life, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    deadline = time.monotonic() + 5
    while interfaces() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert interfaces() - before == set()
