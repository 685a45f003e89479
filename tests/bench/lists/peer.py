#!/usr/bin/env python3
"""What is read of a full node again and again, here and of containerd, interleaved in one run; prints the ratios.

    tests/bench/lists/peer.py [--containers 0,50,200] [--reads N] [--alone 1000]

Both have the same containers, four in a pod. Pods' figures, which containerd 1.6 hardly has, are compared with what it takes
to tell those of the same containers. `--alone` goes on with ours, for which there are no ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lifecycle"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "critest-config"))

from nodekit import images, leaks
from run import start_endpoints

AIMS: dict[str, tuple[str, float]] = {
    "ListContainerStats": ("ListContainerStats", 1 / 10),
    "ListPodSandboxStats": ("ListContainerStats", 1 / 5),
    "ListContainers": ("ListContainers", 1.0),
    "ListPodSandbox": ("ListPodSandbox", 1.0),
    "Status": ("Status", 3.0),
    "ContainerStatus": ("ContainerStatus", 1.5),
    "Version": ("Version", math.inf),
}
"""What is read of ours, the call of the peer's that it is compared with, and what p50 may be at most as a part of that. Version is there for what the libraries take."""
PEERS = tuple(dict.fromkeys(peer for peer, _ in AIMS.values()))
PER_POD = 4


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Ratios of what a kubelet reads all the time.")
    parser.add_argument("--containers", default="0,50,200", help="running ones, of each (%(default)s)")
    parser.add_argument("--reads", type=int, default=60, help="of each kind, per endpoint (%(default)s)")
    parser.add_argument("--alone", type=int, default=0, help="then so many of ours alone (%(default)s)")
    parser.add_argument("--image", default=images.LIFECYCLE, help="what they run (%(default)s)")
    options = parser.parse_args()
    return leaks.contained(lambda: compare(options), judged=False)


def compare(options: argparse.Namespace) -> int:
    """Start both, fill them, read, print, clean up."""
    with contextlib.ExitStack() as cleanup:
        endpoints = start_endpoints(["cri-jails", "containerd"], cleanup)
        logs = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bench-logs-"))
        from client import (
            Client,
        )  # gRPC starts threads, and namespaces are changed by a process that has none

        ours, peer = (Full(Client(address), options.image, logs) for address, _ in endpoints)
        pids = [pid_of(address) for address, _ in endpoints]
        cleanup.callback(lambda: [full.remove() for full in (ours, peer)])
        for containers in map(int, options.containers.split(",")):
            for full in (ours, peer):
                full.grow(containers)
            print(f"== {containers} containers, {-(-containers // PER_POD)} pods", flush=True)
            report(*read(ours, peer, options.reads))
            memory = [pss(pid) for pid in pids]
            ratio = memory[0] / memory[1]
            print(
                f"{'PSS of the daemon':<22}{memory[0]:>9.1f} MB{memory[1]:>9.1f} MB  ratio {ratio:>6.3f}"
                f"             aim 1 {'met' if ratio <= 1 else 'MISSED'}",
                flush=True,
            )
        if options.alone:
            peer.remove()
            ours.grow(options.alone)
            print(f"== {options.alone} containers, ours alone", flush=True)
            for name, seconds in read(ours, None, options.reads)[0].items():
                print(f"{name:<22}{statistics.median(seconds) * 1e3:>9.2f} ms")
            print(f"{'PSS of the daemon':<22}{pss(pids[0]):>9.1f} MB")
    return 0


class Full:
    """An endpoint, and what was made of it."""

    def __init__(self, client: Any, image: str, logs: str) -> None:
        self.client = client
        self._image = image
        self._logs = logs
        self._pods: list[str] = []
        self._containers: list[str] = []
        self.ask("PullImage", image={"image": image})

    def ask(self, rpc: str, **fields: Any) -> Any:
        """Call an RPC."""
        return self.client.call(rpc, self.client.request(rpc, **fields))

    def grow(self, containers: int) -> None:
        """Have as many containers running."""
        while len(self._containers) < containers:
            number = len(self._containers)
            name = f"pod{number // PER_POD}"
            config = {
                "metadata": {"name": name, "uid": name, "namespace": "bench"},
                "hostname": name,
                "log_directory": f"{self._logs}/{name}",
                "labels": {f"label{at}": "x" * 20 for at in range(4)},
                "linux": {},
            }
            if number % PER_POD == 0:
                self._pods.append(self.ask("RunPodSandbox", config=config).pod_sandbox_id)
            container = {
                "metadata": {"name": f"c{number}"},
                "image": {"image": self._image},
                "log_path": f"c{number}.log",
                "labels": {f"label{at}": "x" * 20 for at in range(4)},
                "annotations": {f"annotation{at}": "x" * 20 for at in range(4)},
                "linux": {},
            }
            made = self.ask(
                "CreateContainer", pod_sandbox_id=self._pods[-1], config=container, sandbox_config=config
            ).container_id
            self.ask("StartContainer", container_id=made)
            self._containers.append(made)

    def timed(self, rpc: str) -> float | None:
        """Seconds of a call; None if there is nothing to ask about."""
        if rpc == "ContainerStatus" and not self._containers:
            return None
        fields = {"container_id": self._containers[-1]} if rpc == "ContainerStatus" else {}
        request = self.client.request(rpc, **fields)
        began = time.perf_counter()
        self.client.call(rpc, request)
        return time.perf_counter() - began

    def remove(self) -> None:
        """Remove all pods."""
        while self._pods:
            self.ask("RemovePodSandbox", pod_sandbox_id=self._pods.pop())
        self._containers.clear()


Durations = dict[str, list[float]]


def read(ours: Full, peer: Full | None, reads: int) -> tuple[Durations, Durations]:
    """Read everything of both, in turns, over more than an interval between two samples."""
    found: tuple[Durations, Durations] = ({name: [] for name in AIMS}, {name: [] for name in PEERS})
    for number in range(reads):
        sides = [(ours, found[0])] if peer is None else [(ours, found[0]), (peer, found[1])]
        for full, durations in sides if number % 2 else reversed(sides):
            for name, seconds in durations.items():
                if (took := full.timed(name)) is not None:
                    seconds.append(took)
        time.sleep(0.25)
    return found


def report(ours: Durations, peer: Durations) -> None:
    """Print p50 of both in ms, and the ratios of p50 and p90."""
    for name, (compared, aim) in AIMS.items():
        if not (a := ours[name]) or not (b := peer[compared]):
            continue
        p50, p90 = (
            [statistics.quantiles(seconds, n=10, method="inclusive")[at] for seconds in (a, b)]
            for at in (4, 8)
        )
        ratio = p50[0] / p50[1]
        verdict = "" if aim == math.inf else f"  aim {aim:g} {'met' if ratio <= aim else 'MISSED'}"
        print(
            f"{name:<22}{p50[0] * 1e3:>9.2f} ms{p50[1] * 1e3:>9.2f} ms  ratio {ratio:>6.3f}  p90 {p90[0] / p90[1]:>6.3f}{verdict}",
            flush=True,
        )


def pid_of(address: str) -> int:
    """The process that listens on a unix socket: unix(7), SO_PEERCRED."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address.removeprefix("unix://"))
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return int(struct.unpack("iII", credentials)[0])


def pss(pid: int) -> float:
    """The proportional share of memory of a process, in MB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
