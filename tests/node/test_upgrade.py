"""Pods go on while the daemon's release changes: from the last landed one to this one, and back.

As at an upgrade, the new release is put where the old one was: what still runs of that finds none of its files again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1
from tests.landed import install_landed, install_this
from tests.node.conftest import Daemon, running_daemon

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

RUNNING = v1.ContainerState.CONTAINER_RUNNING
EXITED = v1.ContainerState.CONTAINER_EXITED
TICK = "trap 'echo asked; exit 7' TERM; n=0; while true; do n=$((n+1)); echo tick $n; sleep 0.1; done"
MODES = ("CONTAINER", "POD", "NODE")
WAYS = {"upgrade": (install_landed, install_this), "downgrade": (install_this, install_landed)}


@pytest.fixture(params=WAYS)
def node(request, registry, tmp_path) -> Iterator[tuple[Daemon, Callable[[Path], None], set[str]]]:
    """A daemon of one release, and what installs the other in its place."""
    first, second = WAYS[request.param]
    first(tmp_path)
    with running_daemon(registry, f"criu{os.getpid()}", checkout=tmp_path) as daemon:
        pods: set[str] = set()
        yield daemon, second, pods
        if request.param == "downgrade":
            remove_groups(pods)


def remove_groups(pods: set[str]) -> None:
    """Of version 1's hierarchies without limits, which the landed release knows nothing of: it leaves them there, empty."""
    for parent in Path("/sys/fs/cgroup").glob("*/cri-jails"):
        for pod in pods:
            for directory, _, _ in os.walk(parent / pod, topdown=False):
                Path(directory).rmdir()
        if not any(one.is_dir() for one in parent.iterdir()):
            parent.rmdir()


class Pods:
    """Something of every kind, made by one release and looked at by another."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        daemon.pull()
        self.pods, self.ticking = {}, {}
        for mode in MODES:
            options = v1.NamespaceOption(pid=v1.NamespaceMode[mode])
            self.pods[mode] = daemon.pod(
                mode.lower(), security_context=v1.LinuxSandboxSecurityContext(namespace_options=options)
            )
            self.ticking[mode] = daemon.container(
                self.pods[mode],
                *("sh", "-c", TICK),
                name="ticking",
                linux=v1.LinuxContainerConfig(
                    security_context=v1.LinuxContainerSecurityContext(namespace_options=options),
                    resources=v1.LinuxContainerResources(memory_limit_in_bytes=64 << 20),
                ),
            )
        pod = self.pods["CONTAINER"]
        self.created = daemon.container(pod, "sh", "-c", "echo begun; exit 8", name="created", start=False)
        self.ended = daemon.container(pod, "sh", "-c", "exit 3", name="ended")
        self.terminal = daemon.container(pod, "sh", name="terminal", tty=True, stdin=True)
        context = v1.LinuxContainerSecurityContext(run_as_username="user", no_new_privs=True)
        self.user = daemon.container(
            pod, "sleep", "1000", name="user", linux=v1.LinuxContainerConfig(security_context=context)
        )
        self.running = [*self.ticking.values(), self.terminal, self.user]
        daemon.wait(self.ended, EXITED)
        self.pids = {container: daemon.pid(container) for container in self.running}
        self.ending = daemon.container(pod, "sh", "-c", "sleep 1; exit 42", name="ending")
        self.ticks = {container: self.counted(container) for container in self.ticking.values()}

    def lines(self, container: str) -> list[str]:
        return [line.split(" ", 3)[3] for line in self.daemon.log_of(container).read_text().splitlines()]

    def counted(self, container: str) -> list[int]:
        return [int(line.removeprefix("tick ")) for line in self.lines(container) if line.startswith("tick")]

    def stop(self, container: str) -> v1.ContainerStatus:
        self.daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=10))
        return self.daemon.status(container).status


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_pods_go_on(node) -> None:
    daemon, install_other, made = node
    pods = Pods(daemon)
    made |= set(pods.pods.values())
    assert Path(f"/proc/{daemon.process.pid}/cwd").readlink() == daemon.checkout
    daemon.end()
    install_other(daemon.checkout)
    time.sleep(1.2)
    daemon.start()

    # Nothing has ended, and what has ended meanwhile is known.
    for container, pid in pods.pids.items():
        assert (daemon.status(container).status.state, daemon.pid(container)) == (RUNNING, pid)
    ended = [daemon.wait(container, EXITED).exit_code for container in (pods.ended, pods.ending)]
    assert ended == [3, 42]
    for container, before in pods.ticks.items():
        until(lambda container=container, before=before: len(pods.counted(container)) > len(before) + 5)
        counted = pods.counted(container)
        assert counted == list(range(1, len(counted) + 1)), "lines were lost or doubled"

    # Execs: by a warden of the other release.
    for container in pods.running:
        answer = daemon.exec(container, "sh", "-c", "echo out; echo err >&2; exit 5")
        assert (answer.exit_code, answer.stdout, answer.stderr) == (5, b"out\n", b"err\n")
    answer = daemon.exec(pods.user, "sh", "-c", "id -u; grep NoNewPrivs /proc/self/status; hostname")
    assert answer.stdout.decode().split() == ["1000", "NoNewPrivs:", "1", "container"]
    with pytest.raises(grpc.RpcError, match="not found"):
        daemon.exec(pods.user, "nothing-of-this-name")

    # Starts: of what the one release has made, and of what the other makes in the one's pods.
    daemon.client("StartContainer", v1.StartContainerRequest(container_id=pods.created))
    assert daemon.wait(pods.created, EXITED).exit_code == 8
    assert pods.lines(pods.created) == ["begun"]
    for mode, pod in pods.pods.items():
        options = v1.NamespaceOption(pid=v1.NamespaceMode[mode])
        context = v1.LinuxContainerSecurityContext(namespace_options=options, run_as_user=v1.Int64Value(1000))
        later = daemon.container(
            pod,
            *("sh", "-c", "id -u; exec sleep 1000"),
            name="later",
            linux=v1.LinuxContainerConfig(security_context=context),
        )
        assert daemon.exec(later, "id", "-u").stdout == b"1000\n"
        until(lambda later=later: pods.lines(later) == ["1000"])

    # Limits, statistics, logs.
    ticking = pods.ticking["POD"]
    more = v1.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
    daemon.client(
        "UpdateContainerResources", v1.UpdateContainerResourcesRequest(container_id=ticking, linux=more)
    )
    stats = daemon.client("ContainerStats", v1.ContainerStatsRequest(container_id=ticking)).stats
    assert stats.memory.usage_bytes.value > 0
    log = daemon.log_of(ticking)
    log.rename(f"{log}.old")
    daemon.client("ReopenContainerLog", v1.ReopenContainerLogRequest(container_id=ticking))
    until(lambda: "tick" in log.read_text())

    # Stops: one that asks, and that of a whole pod, whose warden ends.
    assert [pods.stop(container).exit_code for container in pods.ticking.values()] == [7, 7, 7]
    for pod in pods.pods.values():
        daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
        daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert daemon.client("ListContainers", v1.ListContainersRequest()).containers == []
    assert not [pid for pid in pods.pids.values() if Path(f"/proc/{pid}").exists()]

    # And a pod of the other release's own.
    daemon.pull()
    container = daemon.container(daemon.pod("new"), "sleep", "1000")
    assert daemon.exec(container, "true").exit_code == 0
