#!/usr/bin/env python3
"""Cold pulls from a registry on this machine, here and of containerd, interleaved in one run; prints the ratios.

    tests/bench/pull/run.py [--cycles N]

Large images of 8 and of 12 layers in gzip and in zstd, one at a time, and twenty small ones at once. Each is removed before it is
pulled again. Of ours it is told besides how much more memory it has than before its first pull, and how late calls of Version are
answered meanwhile, which cannot be less than what the event loop is late by; the peer's show what the machine adds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lifecycle"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lists"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "critest-config"))

from nodekit import leaks
from peer import pid_of
from run import start_endpoints  # of lifecycle
from shop import LARGE, PREFIX, SMALL, small

AIM = 0.5
"""What p50 of ours may be at most, as a part of the peer's."""
MEMORY_AIM = 64.0  # MiB
LAG_AIM = 20.0  # ms, p99
PAUSE = 0.005  # seconds between two calls of Version


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Ratios of cold pulls.")
    parser.add_argument("--cycles", type=int, default=7, help="pulls of each, per endpoint (%(default)s)")
    options = parser.parse_args()
    return leaks.contained(lambda: compare(options.cycles), judged=False)


def compare(cycles: int) -> int:
    """Fill a registry, start both, pull, print, clean up."""
    with contextlib.ExitStack() as cleanup:
        storage = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bench-shop-"))) / "storage"
        storage.mkdir()
        shop = Path(__file__).resolve().parent / "shop.py"
        subprocess.run([sys.executable, shop, storage], check=True)
        endpoints = start_endpoints(["cri-jails", "containerd"], cleanup, storage)
        from client import (
            Client,
        )  # gRPC starts threads, and namespaces are changed by a process that has none

        ours, peer = (Side(Client(address, 300), pid_of(address)) for address, _ in endpoints)
        for name in LARGE:
            measure(name, [f"{PREFIX}/{name}:latest"], ours, peer, cycles)
        measure(f"{SMALL} small", [f"{PREFIX}/{small(n)}:latest" for n in range(SMALL)], ours, peer, cycles)
    return 0


class Side:
    """An endpoint, and the process behind it."""

    def __init__(self, client: Any, pid: int) -> None:
        self._client = client
        self._pid = pid
        self._idle = self._kib("VmRSS")

    def ask(self, rpc: str, **fields: Any) -> Any:
        """Call an RPC."""
        return self._client.call(rpc, self._client.request(rpc, **fields))

    def pull(self, images: list[str]) -> float:
        """Seconds until all of them are here; they are not before."""
        for image in images:
            self.ask("RemoveImage", image={"image": image})
        time.sleep(0.5)  # what is deleted behind the answer
        os.sync()
        with ThreadPoolExecutor(len(images)) as pool:
            began = time.perf_counter()
            for _ in pool.map(lambda image: self.ask("PullImage", image={"image": image}), images):
                pass
            return time.perf_counter() - began

    @contextlib.contextmanager
    def growth(self) -> Iterator[Callable[[], float]]:
        """Yields what tells how many MiB the process had at most since then, above those of the beginning."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # the peak begins anew
        yield lambda: (self._kib("VmHWM") - self._idle) / 1024

    @contextlib.contextmanager
    def asked(self) -> Iterator[list[float]]:
        """Yields how many milliseconds each call of Version takes, made one after the other meanwhile."""
        found: list[float] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.wait(PAUSE):
                began = time.perf_counter()
                self.ask("Version")
                found.append((time.perf_counter() - began) * 1e3)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()

    def _kib(self, key: str) -> int:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(what: str, images: list[str], ours: Side, peer: Side, cycles: int) -> None:
    """Pull in turns, after a round that warms both up, then watch some pulls of ours, and print."""
    seconds: dict[Side, list[float]] = {ours: [], peer: []}
    for number in range(cycles + 1):
        for side in (ours, peer) if number % 2 else (peer, ours):
            took = side.pull(images)
            if number:
                seconds[side].append(took)
    growths: list[float] = []
    answers: dict[Side, list[float]] = {ours: [], peer: []}
    for _ in range(max(2, cycles // 2)):
        for side in (ours, peer):
            with side.growth() as grown, side.asked() as found:
                side.pull(images)
                if side is ours:
                    growths.append(grown())
            answers[side] += found
    a, b = (statistics.median(seconds[side]) for side in (ours, peer))
    late, late_peer = (
        statistics.quantiles(answers[side], n=100, method="inclusive")[98] for side in (ours, peer)
    )
    print(
        f"{what:<14}{a:>7.2f} s{b:>7.2f} s  ratio {a / b:>6.3f} {judged(a / b, AIM)}"
        f"   memory {max(growths):>6.1f} MiB {judged(max(growths), MEMORY_AIM)}"
        f"   Version p99 {late:>6.1f} ms {judged(late, LAG_AIM)}, the peer's {late_peer:.1f} ms",
        flush=True,
    )


def judged(found: float, aim: float) -> str:
    """Whether an aim is met."""
    return f"({'met' if found <= aim else 'MISSED'}, {aim:g})"


if __name__ == "__main__":
    sys.exit(main())
