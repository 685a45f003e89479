"""A log disk that does not answer: frozen (fsfreeze(8)), as a dead NFS server would be."""

from __future__ import annotations

import subprocess
import time

import grpc
import pytest

from cri.api.runtime import v1
from tests.disk import Disk, need_loop_mounts

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

PATIENCE = 20.0
"""Seconds: five until the warden is silent, two for it to die, and what a busy machine takes."""


@pytest.fixture
def disk(daemon, tmp_path):
    need_loop_mounts()
    made = Disk(tmp_path / "image", daemon.logs, 64)
    yield made
    daemon.remove_all()
    made.unmount()


def test_its_pods_can_be_stopped_and_removed(daemon, disk) -> None:
    daemon.pull()
    printing, silent = daemon.pod("printing"), daemon.pod("silent")
    daemon.container(printing, "sh", "-c", "while true; do echo line; sleep 0.01; done")
    waiting = daemon.container(silent, "sleep", "1000", start=False)
    subprocess.run(["fsfreeze", "--freeze", daemon.logs], check=True)
    try:
        time.sleep(0.5)
        with pytest.raises(grpc.RpcError, match="has not answered"):
            daemon.client("StartContainer", v1.StartContainerRequest(container_id=waiting))
        for pod in (printing, silent):
            began = time.monotonic()
            daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
            daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
            assert time.monotonic() - began < PATIENCE
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", daemon.logs], check=True)
    assert daemon.events(
        "a killed warden hangs in the kernel, on a disk that does not answer; it ends when that does"
    )
