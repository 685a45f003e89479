#!/usr/bin/env python3
"""Compare ADD and DEL of a pod with the reference plugins' binaries, interleaved in one run, and print the ratios.

    tests/bench/network/run.py [--cycles N] [--pods N]

Both attach pods with the same configuration (bridge, host-local, portmap with one port), each to a host's network namespace
of its own: first with no other pods there, then with --pods. A pod is a network namespace that is there before the clock
starts. Ours is called as the daemon calls it, in process; the binaries as a runtime calls them, a process each. Our DEL
returns when the pod is off the network, and deletes its interface in the background: "all gone" waits for that, too.

Needs root, containernetworking-plugins and iptables.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from cni_plugins import CNI, Attachment, Ledger, NetworkList, PortMapping, RuntimeConfig  # noqa: E402

BINARIES = Path("/usr/lib/cni")
AIM_RATIO, AIM_GROWTH = 1 / 5, 1.5


class Namespace:
    """A network namespace, and a thread that lives in it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.move_target = self.run(self._enter)
        self.path = f"/proc/{os.getpid()}/fd/{self.move_target}"

    @staticmethod
    def _enter() -> int:
        if ctypes.CDLL(None).unshare(0x40000000):
            raise PermissionError("cannot unshare the network; run as root")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call something inside."""
        return self._thread.submit(function, *arguments).result()

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Make a socket inside."""
        return self.run(socket.socket, family, kind, protocol)

    def close(self) -> None:
        """End it."""
        os.close(self.move_target)
        self._thread.shutdown()


class Side(Protocol):
    """One way to attach pods."""

    def add(self, name: str, pod: Namespace, port: int) -> None:
        """ADD."""

    def delete(self, name: str, pod: Namespace, port: int) -> None:
        """DEL."""

    def settle(self) -> None:
        """Wait until nothing of what was deleted is left."""


def configuration(directory: Path, subnet: str) -> dict[str, Any]:
    """The same for both."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(directory),
    }
    bridge = {"type": "bridge", "bridge": "bench0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"name": "bench", "cniVersion": "1.0.0", "plugins": [bridge, portmap]}


class Ours:
    """`cni_plugins.CNI` in this process."""

    def __init__(self, directory: Path) -> None:
        self.host = Namespace()
        self._ledger = Ledger(directory / "network.db", "boot")
        self._cni = CNI(self._ledger, self.host)
        self._network = NetworkList.from_json(configuration(directory, "10.201.0.0/16"))

    def add(self, name: str, pod: Namespace, port: int) -> None:
        """ADD."""
        runtime = RuntimeConfig(port_mappings=(PortMapping(port, 80),))
        self._cni.add(self._network, Attachment(name, netns=pod.path, runtime=runtime), pod)

    def delete(self, name: str, pod: Namespace, port: int) -> None:
        """DEL."""
        del port
        self._cni.delete(self._network, Attachment(name, netns=pod.path), pod)

    def settle(self) -> None:
        """Wait for interfaces that are deleted in the background."""
        self._cni.settle()

    def close(self) -> None:
        """End."""
        self._cni.close()
        self._ledger.close()
        self.host.close()


class Binaries:
    """The reference plugins, executed one after another as libcni does."""

    def __init__(self, directory: Path) -> None:
        self.host = Namespace()
        self._configuration = configuration(directory, "10.202.0.0/16")
        self._results: dict[str, Any] = {}

    def add(self, name: str, pod: Namespace, port: int) -> None:
        """ADD."""
        result = None
        for plugin in self._configuration["plugins"]:
            result = json.loads(self._execute("ADD", plugin, name, pod, port, result))
        self._results[name] = result

    def delete(self, name: str, pod: Namespace, port: int) -> None:
        """DEL."""
        result = self._results.pop(name)
        for plugin in reversed(self._configuration["plugins"]):
            self._execute("DEL", plugin, name, pod, port, result)

    def settle(self) -> None:
        """Nothing is left for later."""

    def close(self) -> None:
        """End."""
        self.host.close()

    def _execute(
        self, command: str, plugin: dict[str, Any], name: str, pod: Namespace, port: int, result: Any
    ) -> bytes:
        told = {**plugin, "name": "bench", "cniVersion": "1.0.0"}
        if plugin.get("capabilities"):
            mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
            told["runtimeConfig"] = {"portMappings": [mapping]}
        if result is not None:
            told["prevResult"] = result
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(BINARIES),
            "PATH": os.environ["PATH"],
        }

        def execute() -> bytes:
            return subprocess.run(
                [BINARIES / plugin["type"]],
                input=json.dumps(told).encode(),
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout

        answer: bytes = self.host.run(execute)
        return answer


def main() -> int:
    """Parse the command line, measure, print; the exit code is 0 whatever the ratios are."""
    parser = argparse.ArgumentParser(description="Compare ADD and DEL with the reference plugins' binaries.")
    parser.add_argument(
        "--cycles", type=int, default=30, help="measured cycles per side and load (%(default)s)"
    )
    parser.add_argument("--warm-up", type=int, default=3, help="cycles before those (%(default)s)")
    parser.add_argument("--pods", type=int, default=200, help="pods there in the second half (%(default)s)")
    options = parser.parse_args()
    if options.cycles < 2:
        parser.error("--cycles: quantiles need at least 2")
    if os.geteuid() or not (BINARIES / "portmap").exists():
        parser.error("run as root, with containernetworking-plugins installed")
    with contextlib.ExitStack() as cleanup:
        sides: dict[str, Side] = {}
        for name, kind in (("cri-jails", Ours), ("binaries", Binaries)):
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            sides[name] = made = kind(directory)
            cleanup.callback(made.close)
        table = {0: measure(sides, options)}
        for number in range(options.pods):
            for side in sides.values():
                pod = Namespace()
                cleanup.callback(pod.close)
                side.add(f"there-{number}", pod, 20000 + number)
        table[options.pods] = measure(sides, options)
    show(table)
    return 0


def measure(sides: dict[str, Side], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each step of each side; the sides take turns, and turns in going first."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    for cycle in range(options.warm_up + options.cycles):
        order = list(sides.items()) if cycle % 2 else list(sides.items())[::-1]
        for name, side in order:
            pod = Namespace()
            steps = one_cycle(side, f"pod-{cycle}", pod)
            pod.close()
            if cycle >= options.warm_up:
                for step, duration in steps.items():
                    found[name].setdefault(step, []).append(duration)
    return found


def one_cycle(side: Side, name: str, pod: Namespace) -> dict[str, float]:
    """Attach and detach a pod."""
    marks = [time.perf_counter()]
    for step in (lambda: side.add(name, pod, 10080), lambda: side.delete(name, pod, 10080), side.settle):
        step()
        marks.append(time.perf_counter())
    added, deleted, gone = (1000 * (mark - marks[0]) for mark in marks[1:])
    return {"ADD": added, "DEL": deleted - added, "ADD+DEL": deleted, "all gone": gone}


def show(table: dict[int, dict[str, dict[str, list[float]]]]) -> None:
    """Print the table."""
    print(f"{'pods':>5}  {'':10}{'cri-jails':>18}  {'binaries':>18}  {'ratio':>6}   (p50, p95 in ms)")
    middle = {}
    for pods, found in table.items():
        for step in found["cri-jails"]:
            cells = []
            for name in ("cri-jails", "binaries"):
                durations = sorted(found[name][step])
                middle[pods, name, step] = statistics.median(durations)
                high = durations[min(len(durations) - 1, round(0.95 * len(durations)))]
                cells.append(f"{middle[pods, name, step]:8.2f} {high:9.2f}")
            ratio = middle[pods, "cri-jails", step] / middle[pods, "binaries", step]
            print(f"{pods:5}  {step:10}{cells[0]:>18}  {cells[1]:>18}  {ratio:6.3f}")
    few, many = table
    growth = middle[many, "cri-jails", "ADD+DEL"] / middle[few, "cri-jails", "ADD+DEL"]
    worst = max(middle[pods, "cri-jails", "ADD+DEL"] / middle[pods, "binaries", "ADD+DEL"] for pods in table)
    print(f"ADD+DEL p50: at most {worst:.3f} of the binaries' (aim {AIM_RATIO:.2f})")
    print(f"growth from {few} to {many} pods: {growth:.2f} (aim at most {AIM_GROWTH})")


if __name__ == "__main__":
    sys.exit(main())
