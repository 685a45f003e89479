"""A daemon that is out of descriptors can be cleared."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1
from tests.node.conftest import Daemon, running_daemon

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

LIMIT = 128


@pytest.fixture
def node(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon that may open few files, and cannot change that."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nulimit -n {LIMIT}; exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    with running_daemon(registry, f"crif{os.getpid()}") as daemon:
        yield daemon


def test_pods_until_it_fails_and_then_everything_goes(node: Daemon) -> None:
    refusals = []
    node.pull()
    for number in range(LIMIT):
        try:
            pod = node.pod(f"pod{number}")
            node.container(pod, "sleep", "3600", name="c")
        except grpc.RpcError as error:
            refusals.append(error.details())
            if len(refusals) == 3:
                break
    assert refusals
    print(*refusals, sep="\n")
    items = node.client("ListPodSandbox", v1.ListPodSandboxRequest()).items
    assert len(items) > 5
    for container in node.client("ListContainers", v1.ListContainersRequest()).containers:
        node.client("StopContainer", v1.StopContainerRequest(container_id=container.id, timeout=0))
        node.client("RemoveContainer", v1.RemoveContainerRequest(container_id=container.id))
    for item in items:
        node.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=item.id))
        node.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=item.id))
    node.container(node.pod("again"))
