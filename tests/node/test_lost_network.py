"""A whole daemon whose network's ledger, bridge, tables or socket somebody has removed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]


def network_ready(daemon) -> v1.RuntimeCondition:
    status = daemon.client("Status", v1.StatusRequest()).status
    return next(one for one in status.conditions if one.type == "NetworkReady")


def state(daemon, pod: str) -> v1.PodSandboxStatus:
    return daemon.client("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod)).status


def until_ready(daemon) -> None:
    deadline = time.monotonic() + 10
    while not network_ready(daemon).status:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def removed(path: Path) -> None:
    path.unlink()


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [removed, noise, fifo])
def test_pods_go_on_when_the_ledger_is_lost(daemon, harm) -> None:
    daemon.pull()
    mapping = v1.PortMapping(host_port=18080, container_port=8080, protocol=v1.Protocol.TCP)
    pods = [daemon.pod("web", ports=[mapping]), daemon.pod("other")]
    containers = [daemon.container(pod, "sleep", "1000") for pod in pods]
    addresses = [state(daemon, pod).network for pod in pods]
    daemon.end(signal.SIGKILL)
    ledger = daemon.base / "state/network.db"
    for part in ("-wal", "-shm"):
        ledger.with_name(ledger.name + part).unlink(missing_ok=True)
    harm(ledger)
    daemon.start()
    assert [state(daemon, pod).state for pod in pods] == [v1.PodSandboxState.SANDBOX_READY] * 2
    assert [state(daemon, pod).network for pod in pods] == addresses
    until_ready(daemon)
    fresh = daemon.pod("fresh")
    assert state(daemon, fresh).network.ip not in [one.ip for one in addresses]
    gateway = daemon.subnets[0].replace("0.0/16", "0.1")
    for container in containers:
        assert daemon.exec(container, "ping", "-c", "1", "-W", "2", gateway).exit_code == 0
    with pytest.raises(grpc.RpcError, match="18080"):
        daemon.pod("rival", ports=[mapping])


@pytest.mark.parametrize("what", ["bridge", "tables"])
def test_what_is_removed_by_hand_is_told_and_put_back_at_once(daemon, what) -> None:
    daemon.pull()
    pod = daemon.pod("web")
    container = daemon.container(pod, "sleep", "1000")
    assert network_ready(daemon).status
    time.sleep(1.1)  # what was found then counts for a second
    if what == "bridge":
        subprocess.run(["ip", "link", "delete", daemon.network], check=True)
    else:
        table = f"cni-{daemon.network}-masquerade"
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)
    found = network_ready(daemon)
    assert (found.status, found.reason) == (False, "NetworkBroken")
    assert daemon.network in found.message
    until_ready(daemon)
    gateway = daemon.subnets[0].replace("0.0/16", "0.1")
    assert daemon.exec(container, "ping", "-c", "1", "-W", "2", gateway).exit_code == 0


def test_the_socket_comes_back(daemon) -> None:
    path = daemon.base / "run/cri-jails.sock"
    for harm in (path.unlink, lambda: (path.unlink(), path.write_text("mine"))):
        harm()
        deadline = time.monotonic() + 10
        while not path.is_socket():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        daemon.client.close()
        daemon.client = type(daemon.client)(path)
        assert daemon.client("Version", v1.VersionRequest(), timeout=10).runtime_name
