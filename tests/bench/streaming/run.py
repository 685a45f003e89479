#!/usr/bin/env python3
"""Compare streaming and logging of cri-jails and containerd, interleaved in one run, and print the ratios.

    tests/bench/streaming/run.py [--cycles N] [--rounds N] [--size MIB] [--lines MB] [--only cri-jails|containerd]

Both are started here on private directories. They take turns, and take turns in going first, so that whatever else the
machine does hits both. Latencies are those of an exec that prints a word, from the call that asks for its URL to the
first byte and to the exit code. Rates are MB (10^6 bytes) a second, and medians of the rounds:

- stdout: a container's /dev/zero in blocks of 64 KiB; text in writes of 4 KiB, as programs with stdio make them
- stdin: zeros, until the command has taken all of them and ended
- forward: one port-forward session, to and from a server in the pod, with one connection and with 50 at a time
- log: a container that prints lines of 100 bytes, until it has exited, and until the last line is in its log. Every
  line is looked for, in order and as well-formed CRI log records

The exit code is 0 whatever the ratios are. It is 1 if something came out wrong: a byte, a line, an exit code.
Needs Linux and root; what else is missing is built or installed, as by critest-config/run.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lifecycle"))  # its client
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "critest-config"))

from nodekit import critools, images, isolation, leaks, packages
from nodekit.containerd import Containerd
from nodekit.crijails import CriJails
from nodekit.registry import Registry

if TYPE_CHECKING:
    from side import Side

RUNTIMES = {"cri-jails": CriJails, "containerd": Containerd}
MIB = 1 << 20
BATCH = 10  # execs between two turns
LATENCY_AIM, RATE_AIM = 1 / 3, 1.0  # ours as a part of the peer's: at most, at least
CONNECTIONS = 50


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare streaming and logging of two CRI runtimes.")
    parser.add_argument("--cycles", type=int, default=50, help="measured execs per side (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of every rate (%(default)s)")
    parser.add_argument("--only", choices=RUNTIMES, help="measure one runtime alone")
    parser.add_argument(
        "--size", type=int, default=1024, help="MiB of zeros; a quarter for the others (%(default)s)"
    )
    parser.add_argument("--lines", type=int, default=500, help="MB of log lines (%(default)s)")
    options = parser.parse_args()
    if options.cycles < BATCH or min(options.rounds, options.size, options.lines) < 1:
        parser.error(f"--cycles: at least {BATCH}; --rounds, --size and --lines: at least 1")
    return leaks.contained(lambda: compare(options), judged=False)


def compare(options: argparse.Namespace) -> int:
    """Start what is to be started, measure, print, clean up."""
    names = [options.only] if options.only else list(RUNTIMES)
    packages.need(
        *packages.IMAGES, *packages.CRITEST, *(packages.CONTAINERD if "containerd" in names else ())
    )
    tools = critools.build("crictl", "streamclient")
    storage = images.registry_storage()
    isolation.isolate()
    with contextlib.ExitStack() as cleanup:
        base = Path(tempfile.mkdtemp(prefix="bench-"))
        cleanup.callback(shutil.rmtree, base)
        before = leaks.snapshot()
        cleanup.callback(lambda: leaks.sweep(leaks.leaks(before)))
        registry = Registry(storage, base)
        cleanup.callback(registry.stop)
        endpoints = []
        for name in names:
            endpoint = RUNTIMES[name](base / name, registry.url, tools / "crictl")
            cleanup.callback(endpoint.stop)
            endpoint.start()
            endpoints.append(endpoint)
        # gRPC starts threads, and namespaces are changed by a process that has none: so not earlier than here.
        from lines import write_lines
        from side import Side

        data = base / "data"
        data.mkdir()
        write_lines(data / "lines", options.lines * 1_000_000)
        sides = []
        for name, endpoint in zip(names, endpoints, strict=True):
            side = Side(name, endpoint.address, tools, data, base / f"{name}-logs")
            cleanup.callback(side.close)
            sides.append(side)
        latencies = measure_latencies(sides, options.cycles)
        rates, log_sizes = measure_rates(sides, options, data / "lines")
    print_tables(options, latencies, rates)
    for name, size in log_sizes.items():
        print(f"log of {options.lines} MB of lines: {size / 1e6:.0f} MB ({name})")
    return 0


Table = dict[str, dict[str, list[float]]]  # per row and side


def in_turns(sides: list[Side], number: int) -> list[Side]:
    """Return the sides in the order of this turn."""
    return sides if number % 2 else sides[::-1]


def measure_latencies(sides: list[Side], cycles: int) -> Table:
    """Return the milliseconds of execs; the first batch warms up."""
    table: Table = {}
    for number in range(-1, cycles // BATCH):
        for side in in_turns(sides, number):
            for row, milliseconds in side.execs(BATCH).items():
                if number >= 0:
                    table.setdefault(row, {}).setdefault(side.name, []).extend(milliseconds)
    return table


def measure_rates(
    sides: list[Side], options: argparse.Namespace, printed: Path
) -> tuple[Table, dict[str, int]]:
    """Return MB/s of everything that flows, and how large the logs have become."""
    from lines import log_throughput

    size = options.size * MIB
    blocks = str(size // 65536)
    text_size = min(size // 4, printed.stat().st_size) // 4096 * 4096
    text_blocks = str(text_size // 4096)
    quarter = size // 4
    each = quarter // CONNECTIONS
    work: dict[str, Callable[[Side], float]] = {
        "stdout, zeros": lambda side: side.stdout(
            "sh", "-c", f"exec dd if=/dev/zero bs=64k count={blocks} 2>/dev/null", size=size
        ),
        "stdout, text": lambda side: side.stdout(
            "sh", "-c", f"exec dd if=/data/lines bs=4k count={text_blocks} 2>/dev/null", size=text_size
        ),
        "stdin": lambda side: side.stdin(quarter),
        "forward, from pod": lambda side: side.forward("source", 1, quarter),
        "forward, to pod": lambda side: side.forward("discard", 1, quarter),
        f"forward, from, {CONNECTIONS}": lambda side: side.forward("source", CONNECTIONS, each),
        f"forward, to, {CONNECTIONS}": lambda side: side.forward("discard", CONNECTIONS, each),
    }
    table: Table = {}
    log_sizes = {}
    for number in range(options.rounds):
        for row, rate in work.items():
            for side in in_turns(sides, number):
                table.setdefault(row, {}).setdefault(side.name, []).append(rate(side))
        for side in in_turns(sides, number):
            rates, log_sizes[side.name] = log_throughput(side, printed, number)
            for row, megabytes in rates.items():
                table.setdefault(row, {}).setdefault(side.name, []).append(megabytes)
    return table, log_sizes


def print_tables(options: argparse.Namespace, latencies: Table, rates: Table) -> None:
    """Print what was measured, the ratios, and the aims with whether they are met."""
    names = list(next(iter(rates.values())))
    ours, *peers = sorted(names, key=list(RUNTIMES).index)
    heading = "".join(f"{name:>14}" for name in (ours, *peers)) + f"{'ratio':>9}  aim" * bool(peers)
    print(f"{f'ms, {options.cycles} execs':<26}{heading}")
    for row, per_side in latencies.items():
        for quantile, index in (("p50", 49), ("p95", 94)):
            values = [
                statistics.quantiles(per_side[name], n=100, method="inclusive")[index]
                for name in (ours, *peers)
            ]
            verdict = f"{values[0] / values[-1]:>9.3f}"
            if quantile == "p50":
                met = values[0] / values[-1] <= LATENCY_AIM
                verdict += f"  at most {LATENCY_AIM:.2f} {'met' if met else 'MISSED'}"
            print(
                f"{f'{row}, {quantile}':<26}"
                + "".join(f"{value:>14.2f}" for value in values)
                + verdict * bool(peers)
            )
    print(f"{f'MB/s, {options.rounds} rounds':<26}{heading}")
    for row, per_side in rates.items():
        values = [statistics.median(per_side[name]) for name in (ours, *peers)]
        ratio = values[0] / values[-1]
        verdict = f"{ratio:>9.3f}  at least {RATE_AIM:.1f} {'met' if ratio >= RATE_AIM else 'MISSED'}"
        print(f"{row:<26}" + "".join(f"{value:>14.1f}" for value in values) + verdict * bool(peers))


if __name__ == "__main__":
    sys.exit(main())
