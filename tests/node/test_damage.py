"""Any file of the daemon's directories, lost or damaged while it is down: it starts, says so, and only whose it was pays.

One kind of damage for each kind of file; all of them with CRI_TEST_ALL_DAMAGE=1.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import grpc
import pytest

from cri.api.runtime import v1
from tests.chaos import damage

pytestmark = [pytest.mark.node, pytest.mark.timeout(1800)]

PODS = 5
RUNNING = v1.ContainerState.CONTAINER_RUNNING
EXITED = v1.ContainerState.CONTAINER_EXITED


class Pods:
    """Five pods with a container each, as many as there should be again and again."""

    def __init__(self, daemon) -> None:
        self.daemon = daemon
        self.containers: dict[str, str] = {}
        self.pids: dict[str, int] = {}
        self._made = 0

    def fill(self) -> None:
        self.daemon.pull()
        while len(self.containers) < PODS:
            self._made += 1
            pod = self.daemon.pod(f"pod{self._made}")
            container = self.daemon.container(pod, "sleep", "100000")
            self.containers[pod] = container
            self.pids[pod] = self.daemon.pid(container)

    def owner(self, path: Path) -> str:
        """The pod whose file it is, "" for one of nobody."""
        for pod, container in self.containers.items():
            if any(pod.startswith(part) or part == container for part in path.parts if len(part) >= 16):
                return pod
        return ""

    def runs(self, pod: str) -> bool:
        """Whether it runs, as before and in truth."""
        status = self.daemon.status(self.containers[pod]).status
        if status.state != RUNNING:
            return False
        assert self.daemon.pid(self.containers[pod]) == self.pids[pod]
        assert Path(f"/proc/{self.pids[pod]}").exists()
        return self.daemon.exec(self.containers[pod], "echo", "here").stdout == b"here\n"

    def remove(self, pod: str) -> None:
        """Remove it, whatever it has become."""
        self.daemon.client("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
        self.daemon.client("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
        assert not self._is_there(self.pids.pop(pod))
        self.daemon.client(
            "RemoveContainer", v1.RemoveContainerRequest(container_id=self.containers.pop(pod))
        )

    @staticmethod
    def _is_there(pid: int) -> bool:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X"):
                    return False
            except (FileNotFoundError, ProcessLookupError):
                return False
            time.sleep(0.02)
        return True


def kind_of(path: Path, base: Path) -> str:
    """Files that are alike but for whose they are."""
    parts = path.relative_to(base).parts
    return "/".join("ID" if len(part) >= 16 and "." not in part else part for part in parts)


def damages(number: int) -> list[str]:
    if os.environ.get("CRI_TEST_ALL_DAMAGE"):
        return list(damage.KINDS)
    return [damage.KINDS[number % len(damage.KINDS)]]


def test_every_kind_of_file(daemon) -> None:
    chance = random.Random(3)
    pods = Pods(daemon)
    pods.fill()
    kinds = sorted({kind_of(path, daemon.base) for path in damage.files(daemon.base)})
    assert len(kinds) > 15, kinds
    told = []
    for number, kind in enumerate(kinds):
        for how in damages(number):
            pods.fill()
            daemon.end(signal.SIGKILL)
            alike = [path for path in damage.files(daemon.base) if kind_of(path, daemon.base) == kind]
            if not alike:  # one of a database that is not there at the moment
                daemon.start()
                continue
            path = chance.choice(alike)
            owner = pods.owner(path.relative_to(daemon.base))
            damage.damage(path, how, chance)
            before = len(daemon.log.read_text().splitlines())
            daemon.start()
            what = f"{kind} {how}"
            for pod in list(pods.containers):
                try:
                    running = pods.runs(pod)
                except grpc.RpcError as error:
                    raise AssertionError(f"{what}: {error.details()}") from error
                assert running or pod == owner, f"{what}: the pod of another does not run"
                if pod == owner and (not running or number % 2):
                    pods.remove(pod)
            lines = daemon.log.read_text().splitlines()[before:]
            told.append(
                (what, any('"level": "error"' in line or '"level": "warning"' in line for line in lines))
            )
    for pod in list(pods.containers):
        pods.remove(pod)
    silent = [what for what, said in told if not said]
    print("nothing to say of:", silent)
    # What is made anew at every start is worth no word: locks, the reserve, the socket, an index of a log.
    assert len(silent) < len(told) / 2, silent
