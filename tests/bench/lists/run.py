#!/usr/bin/env python3
"""What others do to a caller of Version, and what a full node does to the end of a pod; prints ratios.

    tests/bench/lists/run.py [--containers 0,200,1000] [--calls N] [--cycles N]

Version is called again and again by one client, while another process asks the daemon for something expensive; its p99 is
compared with that of an idle daemon right before. StopPodSandbox and RemovePodSandbox of a pod with one container are
compared with those of a node without containers. `tests/bench/lifecycle/run.py` compares RemoveContainer with a peer's.

Needs root and a static busybox.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from node import Client, Node
from unread import UnreadClient

AIM_CALLS, AIM_PODS = 3.0, 1.5
AIM_MEMORY = 256 << 20
"""Bytes that the daemon may grow by for clients that do not read."""
UNREAD_CLIENTS, UNREAD_LISTS = 20, 50
FAT_CONTAINERS, FAT_BYTES = 60, 250_000
ENTRIES = 10_000
CONFIG_LABELS = 66_000
FEWEST_CALLS = 100
FIRST_LIST = "the first list after a start"
SPAWN = multiprocessing.get_context("spawn")

Load = Callable[[Client, Event], None]


def main() -> int:
    """Parse the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Ratios of Version's p99, and of the end of a pod.")
    parser.add_argument("--containers", default="0,200,1000", help="running ones (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="of calls of Version (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the one in the middle counts (%(default)s)")
    parser.add_argument("--only", default="", help="loads whose names have this in them")
    parser.add_argument("--cycles", type=int, default=20, help="pods per figure (%(default)s)")
    options = parser.parse_args()
    node = Node()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(node.close)
        node.start()
        node.client("PullImage", image={"image": node.image})
        baseline: tuple[float, float] | None = None
        for containers in map(int, options.containers.split(",")):
            node.grow(containers)
            print(f"== {containers} containers", flush=True)
            ends = pod_ends(node, options.cycles)
            if baseline is None:
                baseline = ends
            for name, seconds, first in zip(("Stop", "Remove"), ends, baseline, strict=True):
                report(f"{name}PodSandbox p50", seconds, first, AIM_PODS)
            loads = LOADS | {"pulls with a 7 MB config": pulls(node), FIRST_LIST: lists_once}
            for name, load in loads.items():
                if options.only in name:
                    measure(node, name, load, options)
            if options.only in "unread":
                unread(node, options)
    return 0


def report(name: str, seconds: float, base: float, aim: float) -> None:
    """Print one line of the table."""
    ratio = seconds / base
    verdict = "met" if ratio <= aim else "MISSED"
    print(
        f"{name:<44}{base * 1e3:>9.2f} ms{seconds * 1e3:>9.2f} ms  ratio {ratio:>6.2f}  aim {aim} {verdict}",
        flush=True,
    )


def p99(client: Client, go_on: Callable[[], bool]) -> float:
    """Seconds, of Version called one after another for as long as something goes on."""
    took = []
    while go_on() or len(took) < FEWEST_CALLS:
        began = time.perf_counter()
        client("Version")
        took.append(time.perf_counter() - began)
    return statistics.quantiles(took, n=100, method="inclusive")[98]


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Whether less time than this has gone by since."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() < deadline


@contextlib.contextmanager
def under(node: Node, load: Load) -> Iterator[multiprocessing.process.BaseProcess]:
    """Have a process of its own make trouble."""
    begun, stop = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_trouble, args=(node.socket, load, begun, stop))
    process.start()
    try:
        begun.wait()
        yield process
    finally:
        stop.set()
        process.join()
    if process.exitcode:
        raise RuntimeError("the load has failed: see above")


def _trouble(socket: Path, load: Load, begun: Event, stop: Event) -> None:
    client = Client(socket)
    client("Version")
    begun.set()
    load(client, stop)
    client.close()


def measure(node: Node, name: str, load: Load, options: argparse.Namespace) -> None:
    """Print what a load does to Version."""
    found = []
    for _ in range(options.rounds):
        if load is lists_once:
            node.end()
            node.start()
        idle = p99(node.client, for_seconds(options.seconds))
        with under(node, load) as process:
            going_on = process.is_alive if load is lists_once else for_seconds(options.seconds)
            found.append((p99(node.client, going_on), idle))
    loaded, idle = sorted(found, key=lambda pair: pair[0] / pair[1])[len(found) // 2]
    report(f"Version p99, {name}", loaded, idle, AIM_CALLS)


def statistics_of_all(client: Client, stop: Event) -> None:
    """ListContainerStats, again and again."""
    while not stop.is_set():
        client("ListContainerStats")


def metrics_of_all(client: Client, stop: Event) -> None:
    """ListPodSandboxMetrics, again and again."""
    while not stop.is_set():
        client("ListPodSandboxMetrics")


def lists_of_all(client: Client, stop: Event) -> None:
    """ListContainers, again and again."""
    while not stop.is_set():
        client("ListContainers")


def many_entries(client: Client, stop: Event) -> None:
    """Containers with ten thousand mounts, arguments, groups and annotations, again and again."""
    pod = client(
        "RunPodSandbox",
        config={"metadata": {"name": "many", "uid": uuid.uuid4().hex, "namespace": "bench"}, "linux": {}},
    ).pod_sandbox_id
    image = client("ListImages").images[0].repo_tags[0]
    config = {
        "metadata": {"name": "many"},
        "image": {"image": image},
        "args": ["x"] * ENTRIES,
        "annotations": {f"key{number}": "value" for number in range(ENTRIES)},
        "mounts": [{"container_path": f"/m{number}", "host_path": "/tmp"} for number in range(ENTRIES)],
        "linux": {"security_context": {"supplemental_groups": list(range(ENTRIES))}},
    }
    while not stop.is_set():
        container = client(
            "CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config={}
        ).container_id
        client("ContainerStatus", container_id=container, verbose=True)
        client("RemoveContainer", container_id=container)
    client("RemovePodSandbox", pod_sandbox_id=pod)


class BigPulls:
    """Pulls of an image whose config has 7 MB, its verbose status, and its removal, again and again."""

    def __init__(self, references: list[str]) -> None:
        self._references = references

    def __call__(self, client: Client, stop: Event) -> None:
        """Do it."""
        while not stop.is_set():
            for reference in self._references:
                client("PullImage", image={"image": reference})
                client("ImageStatus", image={"image": reference}, verbose=True)
                client("RemoveImage", image={"image": reference})


LOADS: dict[str, Load] = {
    "ListContainerStats": statistics_of_all,
    "ListPodSandboxMetrics": metrics_of_all,
    "ListContainers": lists_of_all,
    f"CreateContainer with {ENTRIES} of everything": many_entries,
}


def pulls(node: Node) -> Load:
    """The load of pulls with a 7 MB config."""
    labels = {f"label{number}": "x" * 90 for number in range(CONFIG_LABELS)}
    return BigPulls([node.registry.add(f"big{number}", labels | {"n": str(number)}) for number in range(3)])


def lists_once(client: Client, stop: Event) -> None:
    """The two lists that a kubelet asks for first."""
    del stop
    client("ListPodSandbox")
    client("ListContainers")


def unread(node: Node, options: argparse.Namespace) -> None:
    """Print what clients do to Version, and to memory, that leave lists of 15 MB unread."""
    pod = node.pod()
    for _ in range(FAT_CONTAINERS):
        node.container(pod, start=False, annotations={"fat": "x" * FAT_BYTES})
    idle = p99(node.client, for_seconds(options.seconds))
    before = node.memory()
    with contextlib.ExitStack() as cleanup:
        for client in [cleanup.enter_context(UnreadClient(node.socket)) for _ in range(UNREAD_CLIENTS)]:
            for _ in range(UNREAD_LISTS):
                client.call("runtime.v1.RuntimeService/ListContainers")
        loaded = p99(node.client, for_seconds(2 * options.seconds))
        grown = node.memory() - before
        began = time.perf_counter()
        listed = node.client("ListContainers", filter={"pod_sandbox_id": pod})
        waited = time.perf_counter() - began
        grown = max(grown, node.memory() - before)
    report(f"Version p99, {UNREAD_CLIENTS * UNREAD_LISTS} lists of 15 MB unread", loaded, idle, AIM_CALLS)
    verdict = "met" if grown <= AIM_MEMORY else "MISSED"
    print(
        f"    memory grown by {grown >> 20} MiB, aim {AIM_MEMORY >> 20} {verdict}; "
        f"a client that reads got its {len(listed.containers)} containers after {waited:.1f} s"
    )
    node.client("RemovePodSandbox", pod_sandbox_id=pod)


def pod_ends(node: Node, cycles: int) -> tuple[float, float]:
    """The p50 of StopPodSandbox and of RemovePodSandbox, in seconds, of a pod with a running container."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(cycles):
        pod = node.pod()
        node.container(pod)
        for seconds, rpc in zip(took, ("StopPodSandbox", "RemovePodSandbox"), strict=True):
            began = time.perf_counter()
            node.client(rpc, pod_sandbox_id=pod)
            seconds.append(time.perf_counter() - began)
    return statistics.median(took[0]), statistics.median(took[1])


if __name__ == "__main__":
    sys.exit(main())
