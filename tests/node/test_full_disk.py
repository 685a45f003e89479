"""A node whose disk is full, or read-only, starts and can be cleared; Status says what is the matter."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1
from tests.node.conftest import Daemon, traces

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

MIB = 1024 * 1024


def fill(directory: Path) -> None:
    """Take every byte, first by large files and then by small ones."""
    number = 0
    for size in (MIB, 4096, 512, 1):
        with contextlib.suppress(OSError):
            while True:
                number += 1
                descriptor = os.open(directory / f"filler-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                try:
                    for _ in range(8):
                        os.write(descriptor, b"x" * size)
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def free(directory: Path) -> None:
    for path in directory.glob("filler-*"):
        path.unlink()


@pytest.fixture
def node(registry: str) -> Iterator[Daemon]:
    """A daemon, not yet started, whose state is on a disk of 64 MiB of its own."""
    bridge = f"crid{os.getpid()}"
    daemon = Daemon(registry, bridge)
    state, image = daemon.base / "state", daemon.base / "image"
    # Given, as a disk that takes nothing cannot be tried for what it can carry.
    daemon.config.write_text('snapshotter = "overlay"\n' + daemon.config.read_text())
    state.mkdir(mode=0o700)
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, state], check=True)
    before = set(traces(daemon.base, bridge))
    try:
        yield daemon
    finally:
        print(daemon.log.read_text())
        if daemon.process.poll() is None:
            daemon.end(9)
        subprocess.run(["umount", state], check=True)
    assert set(traces(daemon.base, bridge)) <= before
    shutil.rmtree(daemon.base)


def runtime(node: Daemon) -> v1.RuntimeCondition:
    status = node.client("Status", v1.StatusRequest()).status
    return next(one for one in status.conditions if one.type == "RuntimeReady")


def wait_until(node: Daemon, reason: str, patience: float = 10) -> None:
    """For Status to say so; "" is ready. A look at the disk is good for a second."""
    deadline = time.monotonic() + patience
    while (found := runtime(node)).reason != reason or found.status is bool(reason):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_filled_to_the_last_byte_it_can_be_cleared(node: Daemon) -> None:
    node.start()
    node.pull()
    pod = node.pod()
    first = node.container(pod, "sleep", "3600", name="first")
    node.container(pod, "sleep", "3600", name="second")
    other = node.pod("other")
    assert runtime(node).status
    fill(node.base / "state")
    wait_until(node, "DiskFull", 3)
    found = runtime(node)
    assert str(node.base / "state") in found.message

    node.client("RemoveContainer", v1.RemoveContainerRequest(container_id=first))
    node.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=other))
    node.client("RemoveImage", v1.RemoveImageRequest(image=v1.ImageSpec(image=node.image)))
    assert node.client("ListPodSandbox", v1.ListPodSandboxRequest()).items == []
    assert node.client("ListImages", v1.ListImagesRequest()).images == []

    free(node.base / "state")
    wait_until(node, "")
    node.pull()
    node.container(node.pod("again"))
    node.remove_all()
    node.end()


def test_it_starts_on_a_full_disk(node: Daemon) -> None:
    node.start()
    node.pull()
    pod = node.pod()
    node.container(pod, "sleep", "3600")
    node.end(9)
    fill(node.base / "state")
    node.start()
    assert runtime(node).reason == "DiskFull"
    assert len(node.client("ListContainers", v1.ListContainersRequest()).containers) == 1
    node.remove_all()
    free(node.base / "state")
    wait_until(node, "")
    node.end()


def test_it_starts_on_a_read_only_disk(node: Daemon) -> None:
    state = node.base / "state"
    node.start()
    node.pull()
    node.end()
    subprocess.run(["mount", "-o", "remount,ro", state], check=True)
    node.start()
    found = runtime(node)
    assert (found.status, found.reason) == (False, "DiskReadOnly")
    assert len(node.client("ListImages", v1.ListImagesRequest()).images) == 1
    with pytest.raises(grpc.RpcError):
        node.pod()
    subprocess.run(["mount", "-o", "remount,rw", state], check=True)
    wait_until(node, "")
    node.container(node.pod("again"))
    node.remove_all()
    node.end()
