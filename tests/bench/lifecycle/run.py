#!/usr/bin/env python3
"""Compare the life of a pod between two CRI endpoints, interleaved in one run, and print the ratios.

    tests/bench/lifecycle/run.py [--cycles N] [--warm-up N] [--containers N] [--endpoint-a WHICH] [--endpoint-b WHICH]

WHICH is `cri-jails` or `containerd`, started here on a private directory, or the address of an endpoint
that runs already and can pull --image. The two take turns, and take turns in going first (A B, B A, A B...),
so that whatever else the machine does hits both. The client is single-threaded and its cost is part of both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "critest-config"))

from nodekit import critools, images, isolation, leaks, packages
from nodekit.containerd import Containerd
from nodekit.crijails import CriJails
from nodekit.registry import Registry

RUNTIMES = {"cri-jails": CriJails, "containerd": Containerd}
# What p50 of A may be at most, as a part of B's.
AIMS = {
    "RunPodSandbox": 1 / 3,
    "create+start": 0.20,
    "ExecSync": 0.18,
    "RemoveContainer": 1,
    "whole cycle": 0.17,
}


READING_AIMS = {"ListContainerStats": 1 / 3, "ContainerStatus": 2.0}


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare the life of a pod between two CRI endpoints.")
    parser.add_argument("--cycles", type=int, default=30, help="measured cycles per endpoint (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=3, help="cycles before those (%(default)s)")
    parser.add_argument("--endpoint-a", default="cri-jails", help="cri-jails, containerd or unix://PATH")
    parser.add_argument("--endpoint-b", default="containerd", help="cri-jails, containerd or unix://PATH")
    parser.add_argument(
        "--image", default=images.LIFECYCLE, help="has /bin/true and a main process that ends on TERM"
    )
    parser.add_argument(
        "--containers",
        type=int,
        default=0,
        help="then read of a node with so many running (%(default)s: do not)",
    )
    parser.add_argument("--reads", type=int, default=60, help="of each kind, per endpoint (%(default)s)")
    options = parser.parse_args()
    if options.cycles < 2:
        parser.error("--cycles: quantiles need at least 2")
    return leaks.contained(lambda: compare(options), judged=False)


def compare(options: argparse.Namespace) -> int:
    """Start what is to be started, measure, print, clean up."""
    with contextlib.ExitStack() as cleanup:
        endpoints = start_endpoints([options.endpoint_a, options.endpoint_b], cleanup)
        logs = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bench-logs-"))
        durations, floors = measure(options, endpoints, logs)
    print_table(options, AIMS, *(lifes for lifes, _ in durations))
    print_floor(floors, durations[0][0])
    if options.containers:
        print(f"{options.containers} containers; {options.reads} reads each, interleaved")
        print_table(options, READING_AIMS, *(reads for _, reads in durations))
    return 0


def start_endpoints(
    chosen: list[str], cleanup: contextlib.ExitStack, storage: Path | None = None
) -> list[tuple[str, Path | None]]:
    """Start the endpoints that are named, with a registry for them; return the addresses of all, and cri-jails's directory.

    The registry serves `storage`, by default critest's images.
    """
    ours = [which for which in chosen if which in RUNTIMES]
    if not ours:
        return [(address, None) for address in chosen]
    packages.need(*packages.IMAGES, *packages.CRITEST, *(packages.CONTAINERD if "containerd" in ours else ()))
    crictl = critools.build("crictl") / "crictl"
    storage = storage or images.registry_storage()
    isolation.isolate()
    base = Path(tempfile.mkdtemp(prefix="bench-"))
    cleanup.callback(shutil.rmtree, base)
    before = leaks.snapshot()
    cleanup.callback(lambda: leaks.sweep(leaks.leaks(before)))
    registry = Registry(storage, base)
    cleanup.callback(registry.stop)
    endpoints: list[tuple[str, Path | None]] = []
    for side, which in zip("ab", chosen, strict=True):
        if which not in RUNTIMES:
            endpoints.append((which, None))
            continue
        endpoint = RUNTIMES[which](base / side, registry.url, crictl)
        cleanup.callback(endpoint.stop)
        endpoint.start()
        endpoints.append((endpoint.address, base / side if which == CriJails.name else None))
    return endpoints


Durations = dict[str, list[float]]


def measure(
    options: argparse.Namespace, endpoints: list[tuple[str, Path | None]], logs: str
) -> tuple[list[tuple[Durations, Durations]], Durations]:
    """Return the durations of every RPC of a life and of what is read of a full node, per endpoint; and the floor."""
    # gRPC starts threads, and namespaces are changed by a process that has none: so not earlier than here.
    from client import Client
    from cycle import Cycle
    from readings import Readings

    clients = [Client(address) for address, _ in endpoints]
    # Of the first one alone: that is what is printed.
    states = [endpoints[0][1], *(None for _ in endpoints[1:])]
    cycles = [
        Cycle(client, options.image, logs, state) for client, state in zip(clients, states, strict=True)
    ]
    for cycle in cycles:
        cycle.pull()
    for number in range(-options.warm_up, options.cycles):
        for cycle in cycles if number % 2 else reversed(cycles):
            cycle.run(measured=number >= 0)
    readings = [Readings(client, options.image, logs) for client in clients]
    try:
        for reading in readings:
            reading.grow(options.containers)
        for number in range(options.reads if options.containers else 0):
            for reading in readings if number % 2 else reversed(readings):
                reading.read()
    finally:
        for reading in readings:
            reading.remove()
    floors: Durations = {}
    if (floor := cycles[0].floor) is not None:
        floors = floor.durations
        floor.close()
    for client in clients:
        client.close()
    measured = [(cycle.durations, reading.durations) for cycle, reading in zip(cycles, readings, strict=True)]
    return measured, floors


def print_floor(floors: Durations, ours: Durations) -> None:
    """Print what the kernel alone takes: the same plans, executed from C with everything decided before."""
    for name, seconds in floors.items():
        p50, p90 = quantiles(seconds)
        times = quantiles(ours[name])[0] / p50
        print(f"floor of {name:<15}{p50:>9.2f} p50{p90:>9.2f} p90; A takes {times:.1f} times that")


def print_table(options: argparse.Namespace, aims: dict[str, float], a: Durations, b: Durations) -> None:
    """Print p50 and p90 of both sides in ms, the ratios A/B, and the aims with whether they are met."""
    print(
        f"A = {options.endpoint_a}, B = {options.endpoint_b}; ms; {options.cycles} cycles each, interleaved"
    )
    print(f"{'':<18}{'A p50':>9}{'A p90':>9}{'B p50':>9}{'B p90':>9}{'p50 A/B':>10}{'p90 A/B':>10}  aim")
    for name, ours in a.items():
        a50, a90 = quantiles(ours)
        b50, b90 = quantiles(b[name])
        row = f"{name:<18}{a50:>9.2f}{a90:>9.2f}{b50:>9.2f}{b90:>9.2f}{a50 / b50:>10.3f}{a90 / b90:>10.3f}"
        if aim := aims.get(name):
            row += f"  {aim:.3f} {'met' if a50 / b50 <= aim else 'MISSED'}"
        print(row)


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """Return p50 and p90 in milliseconds."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return tenths[4] * 1e3, tenths[8] * 1e3


if __name__ == "__main__":
    sys.exit(main())
