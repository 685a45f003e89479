"""One of the two runtimes: a pod on it, and what is measured there.

The clock runs in streamclient, which is one process for a whole batch of execs, so that starting a client is no
part of a number. It is built on client-go, as kubectl and crictl are.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from client import Client

IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
DISCARD, SOURCE = 7002, 7003  # ports where `streamclient serve` listens in the pod
STREAMCLIENT_SECONDS = 600
MEGABYTE = 1e6
CONTAINER_EXITED = 2  # runtime.v1.ContainerState


class Side:
    """A pod with a container to execute in, and a server to forward ports to.

    TOOLS holds streamclient and DATA the file `text`; containers have them as /tools and /data.
    """

    def __init__(self, name: str, address: str, tools: Path, data: Path, logs: Path) -> None:
        self.name = name
        self.logs = logs
        self._address = address
        self._streamclient = tools / "streamclient"
        self._client = Client(address)
        self._mounts = [
            {"host_path": str(host), "container_path": inside, "readonly": True}
            for host, inside in ((tools, "/tools"), (data, "/data"))
        ]
        logs.mkdir()
        self._config = {
            "metadata": {"name": "bench", "uid": "bench", "namespace": "bench"},
            "hostname": "bench",
            "log_directory": str(logs),
            "linux": {},
        }
        self.call("PullImage", image={"image": IMAGE})
        self._pod = self.call("RunPodSandbox", config=self._config).pod_sandbox_id
        self._container = self.create("main", "sleep", "86400")
        server = self.create(
            "server", "/tools/streamclient", "serve", f"--discard={DISCARD}", f"--source={SOURCE}"
        )
        for container in (self._container, server):
            self.call("StartContainer", container_id=container)
        self._wait_for_server()

    def call(self, rpc: str, **fields: Any) -> Any:
        """Call RPC with these fields and return the response."""
        return self._client.call(rpc, self._client.request(rpc, **fields))

    def create(self, name: str, *command: str) -> str:
        """Create a container in the pod and return its id; its log is NAME.log."""
        config = {
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "command": command,
            "mounts": self._mounts,
            "log_path": f"{name}.log",
            "linux": {},
        }
        created = self.call(
            "CreateContainer", pod_sandbox_id=self._pod, config=config, sandbox_config=self._config
        )
        identifier: str = created.container_id
        return identifier

    def ended(self, container: str) -> bool:
        """Whether the container has exited. Raises RuntimeError if with another code than 0."""
        status = self.call("ContainerStatus", container_id=container).status
        if status.state == CONTAINER_EXITED and status.exit_code:
            raise RuntimeError(
                f"{self.name}: container {container} ended with {status.exit_code}: {status.message}"
            )
        return bool(status.state == CONTAINER_EXITED)

    def execs(self, count: int) -> dict[str, list[float]]:
        """Execute a small command COUNT times, and return the milliseconds to its first byte and to its exit."""
        report = self._stream(
            "execs", f"--count={count}", "--output=hello\n", self._container, "echo", "hello"
        )
        return {"exec, first byte": report["first_ms"], "exec, exit": report["exit_ms"]}

    def stdout(self, *command: str, size: int) -> float:
        """MB/s of stdout of a command that prints SIZE bytes."""
        report = self._stream("exec", "--stdout=/dev/null", self._container, *command)
        self._check(report["exit_code"] == 0 and report["stdout"]["bytes"] == size, report)
        return size / MEGABYTE / (report["exit_ms"] / 1e3)

    def stdin(self, size: int) -> float:
        """MB/s of stdin, until the command has taken all of SIZE bytes and ended."""
        options = ("--stdin=/dev/zero", f"--stdin-bytes={size}")
        # `wc` says how much came; busybox's is slow, and this dd counts whole blocks only.
        counting = "dd of=/dev/null bs=64k iflag=fullblock 2>&1 | head -n 1"
        report = self._stream("exec", *options, self._container, "sh", "-c", counting)
        blocks = f"{size // 65536}+0 records in\n"
        self._check(report["exit_code"] == 0 and report["stdout"]["text"] == blocks, report)
        return size / MEGABYTE / (report["exit_ms"] / 1e3)

    def forward(self, service: str, connections: int, size: int) -> float:
        """MB/s of CONNECTIONS parallel connections of one port-forward session, SIZE bytes each, to or from the pod."""
        port = {"discard": DISCARD, "source": SOURCE}[service]
        options = (
            f"--service={service}",
            f"--port={port}",
            f"--connections={connections}",
            f"--bytes={size}",
        )
        report = self._stream("portforward", *options, self._pod)
        self._check(report["bytes"] == connections * size, report)
        return float(report["mb_per_second"])

    def close(self) -> None:
        """Remove the pod and close the connection."""
        self.call("StopPodSandbox", pod_sandbox_id=self._pod)
        self.call("RemovePodSandbox", pod_sandbox_id=self._pod)
        self._client.close()

    def _stream(self, mode: str, *arguments: str) -> Any:
        target = (f"--endpoint={self._address}", f"--timeout={STREAMCLIENT_SECONDS}s")
        done = subprocess.run(
            [self._streamclient, mode, *target, *arguments], check=False, capture_output=True, text=True
        )
        self._check(done.returncode == 0, done.stdout + done.stderr)
        return json.loads(done.stdout)

    def _check(self, good: bool, said: object) -> None:
        if not good:
            raise RuntimeError(f"{self.name}: streamclient says: {said}")

    def _wait_for_server(self, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.forward("source", 1, 1)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return
