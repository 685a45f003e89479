#!/usr/bin/env python3
"""Measure host-local with many leases, against the reference binary in the same run, and print p50 and the ratios.

    tests/bench/network/ipam.py [--rounds N] [--leases N ...] [--reference DIRECTORY]

A round is an ADD and a DEL of the plugin with a ledger on disk. `one left` is a range with a single free address, so that
each search has to go round all leases; `scattered` are leases all over a /16, with as many holes. The reference keeps a file
per lease, and is measured with few hundred of them; executing it is part of what it costs a runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

from cni_plugins.ledger import Ledger
from cni_plugins.links import Links
from cni_plugins.plugin import Attachment, Context, Request
from cni_plugins.plugins.host_local import HostLocalPlugin
from cni_plugins.runtime_config import RuntimeConfig
from cni_plugins.settings import Settings
from cni_plugins.types import OwnStack, Result

SUBNET = ip_network("10.88.0.0/16")
GROWTH = 1.5  # what p50 of ADD may grow by from no lease to the most


def main() -> int:
    """Parse the command line, measure, print; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure host-local with many leases.")
    parser.add_argument("--rounds", type=int, default=300, help="measured rounds (%(default)s)")
    parser.add_argument(
        "--leases", type=int, nargs="+", default=[0, 10_000, 50_000], help="leases beforehand"
    )
    parser.add_argument(
        "--reference", type=Path, default=Path("/usr/lib/cni"), help="CNI's binaries (%(default)s)"
    )
    options = parser.parse_args()
    if options.rounds < 2 or max(options.leases) > SUBNET.num_addresses - 1000:
        parser.error("--rounds: at least 2; --leases: 1,000 addresses must be left")
    rows = {}
    for count in options.leases:
        for arrangement in ("one left", "scattered") if count else ("",):
            with ours(count, scattered=arrangement == "scattered") as call:
                rows[f"{count:,} leases, {arrangement}" if count else "no lease"] = measure(
                    call, options.rounds
                )
    if (options.reference / "host-local").exists():
        for count in (0, 300):
            with reference(options.reference / "host-local", count) as call:
                rows[f"reference, {count} leases"] = measure(call, max(options.rounds // 10, 2))
    else:
        print("no reference: install containernetworking-plugins", file=sys.stderr)
    print_table(rows)
    return 0


@contextlib.contextmanager
def ours(count: int, *, scattered: bool) -> Iterator[Callable[[str, str], None]]:
    """A plugin with leases beforehand; call it with a command and a container."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        ledger = Ledger(Path(directory, "ledger"), "boot")
        hosts = range(2, SUBNET.num_addresses - 1)
        taken = random.Random(1).sample(hosts, count) if scattered else hosts[:count]
        for number in taken:
            ledger.claim("addresses of network bench", str(SUBNET[number]), f"filler-{number}/eth0")
        end = {"rangeEnd": str(SUBNET[count + 2])} if count and not scattered else {}
        settings = Settings({"type": "host-local", "subnet": str(SUBNET), **end}, "bench")
        plugin = HostLocalPlugin(settings, context(ledger))

        def call(command: str, container: str) -> None:
            attachment = Attachment(container)
            made = Request(attachment, None, Result(), RuntimeConfig())
            if command == "ADD":
                plugin.add(made)
            else:
                plugin.delete(made)

        yield call
        ledger.close()


def context(ledger: Ledger) -> Context:
    """A context with nothing but a ledger: addresses alone need no more."""

    def nothing(*_: object) -> None:
        raise NotImplementedError

    host = OwnStack()
    links: Links = None  # type: ignore[assignment]
    return Context("bench", host, links, ledger, nothing, nothing, nothing)  # type: ignore[arg-type]


@contextlib.contextmanager
def reference(binary: Path, count: int) -> Iterator[Callable[[str, str], None]]:
    """The reference binary with leases beforehand."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        ipam = {"type": "host-local", "subnet": str(SUBNET), "dataDir": directory}
        config = json.dumps({"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "ipam": ipam}).encode()

        def call(command: str, container: str) -> None:
            environment = {
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": "/nowhere",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(binary.parent),
                "PATH": os.environ["PATH"],
            }
            subprocess.run([binary], input=config, env=environment, check=True, capture_output=True)

        for number in range(count):
            call("ADD", f"filler-{number}")
        yield call


def measure(call: Callable[[str, str], None], rounds: int) -> tuple[float, float]:
    """Return p50 of ADD and of DEL in microseconds; the first rounds are not counted."""
    durations: dict[str, list[float]] = {"ADD": [], "DEL": []}
    for number in range(-3, rounds):
        for command, measured in durations.items():
            before = time.perf_counter()
            call(command, f"pod{number + 3}")
            if number >= 0:
                measured.append(time.perf_counter() - before)
    return statistics.median(durations["ADD"]) * 1e6, statistics.median(durations["DEL"]) * 1e6


def print_table(rows: dict[str, tuple[float, float]]) -> None:
    """Print p50 of every row, as parts of the first one and of the last one."""
    first, last = next(iter(rows.values())), list(rows.values())[-1]
    with_reference = any(name.startswith("reference") for name in rows)
    print(
        f"{'host-local in ' + str(SUBNET):<30}{'ADD us':>9}{'DEL us':>9}{'ADD/first':>11}{'ADD/reference':>15}"
    )
    for name, (add, delete) in rows.items():
        row = f"{name:<30}{add:>9.0f}{delete:>9.0f}{add / first[0]:>11.2f}"
        if with_reference:
            row += f"{add / last[0]:>15.4f}"
        if not name.startswith("reference"):
            row += f"  at most {GROWTH} {'met' if add / first[0] <= GROWTH else 'MISSED'}"
        print(row)


if __name__ == "__main__":
    sys.exit(main())
