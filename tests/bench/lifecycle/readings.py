"""What a kubelet reads of a full node again and again, with a stop watch."""

from __future__ import annotations

import time
import uuid
from typing import Any

from client import Client

PER_POD = 50
READS = ("ListContainerStats", "ContainerStatus", "ListContainers")


class Readings:
    """An endpoint with some running containers, and what it takes to read of them."""

    def __init__(self, client: Client, image: str, log_directory: str) -> None:
        self._client = client
        self._image = image
        self._logs = log_directory
        self._pods: list[str] = []
        self._container = ""
        self.durations: dict[str, list[float]] = {name: [] for name in READS}

    def _call(self, rpc: str, **fields: Any) -> Any:
        return self._client.call(rpc, self._client.request(rpc, **fields))

    def grow(self, containers: int) -> None:
        """Have as many containers running, in pods of fifty."""
        for number in range(containers):
            if number % PER_POD == 0:
                name = f"readings-{uuid.uuid4().hex[:12]}"
                config = {
                    "metadata": {"name": name, "uid": name, "namespace": "bench"},
                    "hostname": name,
                    "log_directory": f"{self._logs}/{name}",
                    "labels": {f"label{at}": "x" * 20 for at in range(4)},
                    "linux": {},
                }
                pod = self._call("RunPodSandbox", config=config).pod_sandbox_id
                self._pods.append(pod)
            container = {
                "metadata": {"name": f"c{number}"},
                "image": {"image": self._image},
                "log_path": f"c{number}.log",
                "labels": {f"label{at}": "x" * 20 for at in range(4)},
                "annotations": {f"annotation{at}": "x" * 20 for at in range(4)},
                "linux": {},
            }
            self._container = self._call(
                "CreateContainer", pod_sandbox_id=pod, config=container, sandbox_config=config
            ).container_id
            self._call("StartContainer", container_id=self._container)

    def read(self) -> None:
        """Read everything once."""
        for rpc in READS:
            fields = {"container_id": self._container} if rpc == "ContainerStatus" else {}
            request = self._client.request(rpc, **fields)
            begin = time.perf_counter()
            self._client.call(rpc, request)
            self.durations[rpc].append(time.perf_counter() - begin)

    def remove(self) -> None:
        """Remove the pods."""
        while self._pods:
            pod = self._pods.pop()
            self._call("StopPodSandbox", pod_sandbox_id=pod)
            self._call("RemovePodSandbox", pod_sandbox_id=pod)
