"""The life of one pod with one container, RPC by RPC, with a stop watch."""

from __future__ import annotations

import statistics
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client import Client

if TYPE_CHECKING:
    from floor import Floor

# Row names, in the order of the table. The sums stand for what a person waits for.
RPCS = (
    "Version",
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
)
SUMS = {"create+start": ("CreateContainer", "StartContainer"), "whole cycle": RPCS[1:]}
VERSIONS = 10  # calls per cycle
GRACE = 10  # seconds between TERM and KILL; the main process handles TERM, so nobody should wait for it


class Cycle:
    """Runs the cycle against one endpoint, again and again, and keeps the durations."""

    def __init__(self, client: Client, image: str, log_directory: str, state: Path | None = None) -> None:
        """With the directory of a cri-jails, what the kernel alone takes is measured, too."""
        self._client = client
        self._image = image
        self._logs = log_directory
        self.floor: Floor | None = None
        if state is not None:
            from floor import Floor

            self.floor = Floor(client, state)
        self.durations: dict[str, list[float]] = {name: [] for name in (*RPCS, *SUMS)}

    def pull(self) -> None:
        """Pull the image, which is not measured here."""
        self._client.call("PullImage", self._client.request("PullImage", image={"image": self._image}))

    def run(self, *, measured: bool) -> None:
        """Run one cycle; a warm-up is not MEASURED."""
        took: dict[str, float] = {}

        def timed(rpc: str, **fields: Any) -> Any:
            request = self._client.request(rpc, **fields)
            begin = time.perf_counter()
            response = self._client.call(rpc, request)
            took[rpc] = time.perf_counter() - begin
            return response

        pod_config = self._pod_config()
        versions = []
        for _ in range(VERSIONS):
            timed("Version")
            versions.append(took["Version"])
        took["Version"] = statistics.median(
            versions
        )  # one call alone would mostly tell how cold the caches were
        pod = timed("RunPodSandbox", config=pod_config).pod_sandbox_id
        config = {
            "metadata": {"name": "main"},
            "image": {"image": self._image},
            "log_path": "main.log",
            "linux": {},
        }
        created = timed("CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=pod_config)
        container = created.container_id
        timed("StartContainer", container_id=container)
        answer = timed("ExecSync", container_id=container, cmd=["/bin/true"], timeout=10)
        if answer.exit_code:
            raise RuntimeError(f"/bin/true ended with {answer.exit_code}: {answer.stderr!r}")
        if self.floor is not None:
            config = config | {"metadata": {"name": "floor"}, "log_path": "floor.log"}
            self.floor.run(pod, config, pod_config, measured=measured)
        timed("StopContainer", container_id=container, timeout=GRACE)
        if took["StopContainer"] >= GRACE:
            raise RuntimeError(f"container {container} did not end on TERM; its image must handle the signal")
        timed("RemoveContainer", container_id=container)
        timed("StopPodSandbox", pod_sandbox_id=pod)
        timed("RemovePodSandbox", pod_sandbox_id=pod)
        if measured:
            for rpc, seconds in took.items():
                self.durations[rpc].append(seconds)
            for name, parts in SUMS.items():
                self.durations[name].append(sum(took[part] for part in parts))

    def _pod_config(self) -> dict[str, Any]:
        name = f"lifecycle-{uuid.uuid4().hex[:12]}"
        return {
            "metadata": {"name": name, "uid": uuid.uuid4().hex, "namespace": "bench"},
            "hostname": name,
            "log_directory": f"{self._logs}/{name}",
            "linux": {},
        }
