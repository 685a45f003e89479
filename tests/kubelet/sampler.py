"""How long a runtime takes to answer, measured by a process that does nothing else.

`python -m tests.kubelet.sampler SOCKET HERTZ CONTAINER SANDBOX` calls the RPCs of `REQUESTS` in turn, each so often a second. For
each line on its standard input it prints what it has measured since the line before: JSON, seconds by RPC. Answers are not
parsed, so that the runtime alone is measured.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from tests.kubelet.client import OPTIONS, RPCS

REQUESTS = {
    "Status": {},
    "ListPodSandbox": {},
    "ListContainers": {},
    "PodSandboxStatus": {"pod_sandbox_id": "SANDBOX"},
    "ContainerStatus": {"container_id": "CONTAINER"},
    "ListContainerStats": {},
    "ListPodSandboxStats": {},
}


class Sampler:
    """Such a process."""

    def __init__(self, socket: Path, hertz: float, container: str, sandbox: str) -> None:
        """The container and the sandbox are whose statuses are asked for."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kubelet.sampler", socket, str(hertz), container, sandbox],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def take(self) -> dict[str, list[float]]:
        """What was measured since the last call; blocks for a moment."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, list[float]] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


def main() -> None:
    """Measure until standard input ends."""
    socket, hertz, container, sandbox = sys.argv[1:]
    channel = grpc.insecure_channel(f"unix:{socket}", options=OPTIONS)
    calls = {name: _call(channel, name, container, sandbox) for name in REQUESTS}
    pause = 1 / (float(hertz) * len(calls))
    found: dict[str, list[float]] = defaultdict(list)
    due = time.monotonic()
    while True:
        for name, call in calls.items():
            due = max(due + pause, time.monotonic())
            while select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(found), flush=True)
                found = defaultdict(list)
            began = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - began)


def _call(channel: Any, name: str, container: str, sandbox: str) -> Any:
    service, rpc = RPCS[name]
    values = {"CONTAINER": container, "SANDBOX": sandbox}
    request = bytes(rpc.request(**{key: values[value] for key, value in REQUESTS[name].items()}))
    method = channel.unary_unary(f"/{service}/{name}", request_serializer=None, response_deserializer=None)
    return lambda: method(request, timeout=60)


if __name__ == "__main__":
    main()
