"""Containers do not notice that their daemon dies, and the next one knows all about them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cri.api.runtime import v1

pytestmark = [pytest.mark.node, pytest.mark.timeout(180)]

CONTAINERS = 20
TICK = ("sh", "-c", "n=0; while true; do n=$((n+1)); echo tick $n; sleep 0.2; done")


def ticks(daemon, container: str) -> list[int]:
    lines = daemon.log_of(container).read_text().splitlines()
    return [int(line.rsplit(" ", 1)[1]) for line in lines]


def test_kill_under_twenty_containers(daemon):
    daemon.pull()
    pods = [daemon.pod(f"pod{number}") for number in range(CONTAINERS // 2)]
    containers = [daemon.container(pod, *TICK, name=name) for pod in pods for name in ("first", "second")]
    ending = daemon.container(pods[0], "sh", "-c", "sleep 1.5; exit 42", name="ending")
    shot = daemon.container(pods[1], "sleep", "1000", name="shot")
    pids = {container: daemon.pid(container) for container in containers}
    shot_pid = daemon.pid(shot)
    seen = {container: len(ticks(daemon, container)) for container in containers}

    daemon.end(signal.SIGKILL)
    os.kill(shot_pid, signal.SIGKILL)
    time.sleep(2)
    daemon.start()

    for container in containers:
        status = daemon.status(container).status
        assert status.state == v1.ContainerState.CONTAINER_RUNNING
        assert daemon.pid(container) == pids[container]
        assert Path(f"/proc/{pids[container]}").exists()
        counted = ticks(daemon, container)
        assert len(counted) >= seen[container] + 5, "the log stood still while there was no daemon"
        assert counted == list(range(1, len(counted) + 1)), "lines were lost or doubled"
    before = len(ticks(daemon, containers[0]))
    time.sleep(1)
    assert len(ticks(daemon, containers[0])) > before, "the log does not go on"

    ended = daemon.status(ending).status
    assert (ended.state, ended.exit_code, ended.reason) == (v1.ContainerState.CONTAINER_EXITED, 42, "Error")
    assert ended.finished_at - ended.started_at == pytest.approx(1.5e9, abs=1e9)
    assert daemon.status(shot).status.exit_code == 137
    assert daemon.exec(containers[0], "echo", "still here").stdout == b"still here\n"
    assert daemon.events("recovered")[-1]["seconds"] < 1.0


def test_sigterm_leaves_containers_running(daemon):
    daemon.pull()
    container = daemon.container(daemon.pod(), "sleep", "1000")
    pid = daemon.pid(container)
    daemon.end(signal.SIGTERM)
    assert Path(f"/proc/{pid}").exists()
    daemon.start()
    assert daemon.pid(container) == pid


@pytest.mark.parametrize(
    "other", ["", "state", "run"], ids=["nothing else", "another state", "another runtime"]
)
def test_a_second_daemon_on_the_same_directories_is_refused(daemon, tmp_path, other):
    """It would take the first one's pods for leftovers, and end them."""
    daemon.pull()
    container = daemon.container(daemon.pod(), "sleep", "1000")
    config = daemon.config.read_text()
    if other:
        config = config.replace(f"{daemon.base}/{other}", f"{tmp_path}/{other}")
    (tmp_path / "config.toml").write_text(config)
    refused = subprocess.run(
        [sys.executable, "-m", "cri", "serve", "--config", tmp_path / "config.toml"],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    assert refused.returncode == 1
    assert str(daemon.process.pid) in refused.stderr
    assert daemon.status(container).status.state == v1.ContainerState.CONTAINER_RUNNING
