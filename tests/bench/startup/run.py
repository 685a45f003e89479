#!/usr/bin/env python3
"""What a start of the daemon takes until it answers, on an empty node and on a full one; prints figures and their differences.

    tests/bench/startup/run.py [--containers 0,1000] [--rounds N] [--profile FILE]

Processor time and memory are the daemon's own, from its first instruction until ListContainers has told of all containers.
With --profile, the last start runs under cProfile, whose figures go into FILE.

Needs root and a static busybox.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lists"))

from node import CHECKOUT, Node

AIM_CPU = 1.0
"""Seconds of the processor that 1000 containers may take more than none."""


LIKE_A_KUBELET_S = {
    "envs": [{"key": f"SERVICE_{number}_PORT", "value": b"tcp://10.96.0.1:443"} for number in range(30)],
    "labels": {f"io.kubernetes.label.{number}": "x" * 20 for number in range(5)},
    "annotations": {f"io.kubernetes.annotation.{number}": "x" * 20 for number in range(6)},
}
"""What a container's config has besides."""


@dataclass(frozen=True, slots=True)
class Start:
    """What one start took."""

    cpu: float
    """Seconds."""
    wall: float
    memory: int
    """Bytes: the proportional set size, right after the answer."""


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Processor time and memory of a start.")
    parser.add_argument("--containers", default="0,1000", help="running ones (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="the one in the middle counts (%(default)s)")
    parser.add_argument("--profile", type=Path, help="for cProfile's figures of one more start")
    options = parser.parse_args()
    imports()
    node = Node()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(node.close)
        node.start()
        node.client("PullImage", image={"image": node.image})
        first: Start | None = None
        for containers in map(int, options.containers.split(",")):
            node.grow(containers, **LIKE_A_KUBELET_S)
            starts = [start(node, containers) for _ in range(options.rounds)]
            found = sorted(starts, key=lambda one: one.cpu)[len(starts) // 2]
            first = first or found
            more = found.cpu - first.cpu
            verdict = "met" if more <= AIM_CPU else "MISSED"
            print(
                f"{containers:>6} containers: {found.cpu:6.2f} s of the processor ({more:+.2f}, aim {AIM_CPU}: {verdict}), "
                f"{found.wall:6.2f} s, PSS {found.memory / 2**20:6.1f} MiB "
                f"({(found.memory - first.memory) / 2**20:+.1f})",
                flush=True,
            )
        if options.profile:
            node.end()
            node.start("-m", "cProfile", "-o", str(options.profile))
            node.client("ListContainers")
    return 0


def imports() -> None:
    """Print what the daemon's modules alone take."""
    program = (
        "import time; import cri.log, cri.server, cri.sandbox.linux.host; print(time.process_time(), *("
        "line.split()[1] for line in open('/proc/self/smaps_rollup') if line.startswith('Pss:')))"
    )
    found = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=CHECKOUT, check=True, capture_output=True, text=True
        )
        seconds, kibibytes = done.stdout.split()
        found.append((float(seconds), int(kibibytes) / 1024))
    seconds, mebibytes = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"modules alone: {seconds:.2f} s of the processor, PSS {mebibytes:.1f} MiB", flush=True)


def start(node: Node, containers: int) -> Start:
    """Start the daemon anew."""
    node.end()
    began = time.monotonic()
    node.start()
    told = len(node.client("ListContainers").containers)
    wall = time.monotonic() - began
    if told != containers:
        raise RuntimeError(f"{told} containers are told of, not {containers}: see {node.base}/daemon.log")
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    rollup = Path(f"/proc/{node.pid}/smaps_rollup").read_text()
    return Start(cpu, wall, int(rollup.partition("\nPss:")[2].split()[0]) * 1024)


if __name__ == "__main__":
    sys.exit(main())
