"""A warden that says nothing costs its own pod, in bounded time, and nobody else anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

RUNNING = v1.ContainerState.CONTAINER_RUNNING
EXITED = v1.ContainerState.CONTAINER_EXITED
PATIENCE = 12.0
"""Seconds: the five that a warden is given, and what a busy machine takes."""


def warden_of(daemon, pod: str) -> int:
    identity = daemon.base / "state/sandboxes" / pod / "warden.json"
    return int(json.loads(identity.read_text())["pid"])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 3
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


def pods_with_containers(daemon, count: int) -> dict[str, str]:
    daemon.pull()
    pods = [daemon.pod(f"pod{number}") for number in range(count)]
    return {pod: daemon.container(pod, "sleep", "1000") for pod in pods}


def test_its_pod_can_be_stopped_and_removed(daemon) -> None:
    ((pod, container),) = pods_with_containers(daemon, 1).items()
    warden, first = warden_of(daemon, pod), daemon.pid(container)
    os.kill(warden, signal.SIGSTOP)
    began = time.monotonic()
    daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert time.monotonic() - began < PATIENCE
    assert gone(warden)
    assert gone(first)


def test_its_container_can_be_stopped(daemon) -> None:
    ((pod, container),) = pods_with_containers(daemon, 1).items()
    first = daemon.pid(container)
    os.kill(warden_of(daemon, pod), signal.SIGSTOP)
    began = time.monotonic()
    daemon.client("StopContainer", v1.StopContainerRequest(container_id=container, timeout=300))
    assert time.monotonic() - began < PATIENCE
    assert gone(first)
    status = daemon.status(container).status
    assert (status.state, status.exit_code) == (EXITED, 255)
    assert "did not" in status.message
    daemon.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container))


def test_a_new_daemon_waits_for_it_once_and_for_all(daemon) -> None:
    pods = pods_with_containers(daemon, 4)
    silent, others = list(pods)[:2], list(pods)[2:]
    pids = {container: daemon.pid(container) for container in pods.values()}
    wardens = {pod: warden_of(daemon, pod) for pod in pods}
    daemon.end(signal.SIGKILL)
    for pod in silent:
        os.kill(wardens[pod], signal.SIGSTOP)
    daemon.start()
    assert daemon.events("recovered")[-1]["seconds"] < PATIENCE
    for pod in others:
        assert daemon.status(pods[pod]).status.state == RUNNING
        assert daemon.pid(pods[pod]) == pids[pods[pod]]
        assert daemon.exec(pods[pod], "echo", "here").stdout == b"here\n"
    for pod in silent:
        assert daemon.status(pods[pod]).status.state == EXITED
        assert gone(wardens[pod])
        assert gone(pids[pods[pod]])
        daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert daemon.events("a warden cannot be reached; its pod ends")


def test_an_emptied_runtime_directory(daemon) -> None:
    pods = pods_with_containers(daemon, 3)
    pids = {container: daemon.pid(container) for container in pods.values()}
    daemon.end(signal.SIGKILL)
    shutil.rmtree(daemon.base / "run")
    daemon.start()
    for container in pods.values():
        assert daemon.status(container).status.state == RUNNING
        assert daemon.pid(container) == pids[container]
        assert daemon.exec(container, "echo", "here").stdout == b"here\n"


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link"])
def test_something_else_in_the_place_of_its_socket(daemon, kind) -> None:
    (container,) = pods_with_containers(daemon, 1).values()
    first = daemon.pid(container)
    (socket,) = (daemon.base / "run").glob("*/warden.sock")
    daemon.end(signal.SIGKILL)
    socket.unlink()
    if kind == "file":
        socket.write_bytes(os.urandom(100))
    elif kind == "directory":
        (socket / "inside").mkdir(parents=True)
    elif kind == "fifo":
        os.mkfifo(socket)
    else:
        socket.symlink_to("/nowhere")
    daemon.start()
    assert daemon.pid(container) == first
    assert daemon.exec(container, "echo", "here").stdout == b"here\n"


def test_one_that_nobody_wrote_down_is_known_by_its_socket(daemon) -> None:
    ((pod, container),) = pods_with_containers(daemon, 1).items()
    warden = warden_of(daemon, pod)
    daemon.end(signal.SIGKILL)
    (daemon.base / "state/sandboxes" / pod / "warden.json").write_text("[")
    os.kill(warden, signal.SIGSTOP)
    daemon.start()
    assert gone(warden)
    assert daemon.status(container).status.state == EXITED


def test_another_process_with_its_number_is_left_alone(daemon) -> None:
    ((pod, container),) = pods_with_containers(daemon, 1).items()
    path = daemon.base / "state/sandboxes" / pod / "warden.json"
    daemon.end(signal.SIGKILL)
    told = json.loads(path.read_text())
    os.kill(told["pid"], signal.SIGKILL)
    bystander = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
    try:
        path.write_text(json.dumps(told | {"pid": bystander}))
        daemon.start()
        assert daemon.status(container).status.state == EXITED
        assert lives(bystander)
    finally:
        os.kill(bystander, signal.SIGKILL)
        os.waitpid(bystander, 0)
