"""What a daemon, its spawner and its wardens take of the node (Linux)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import inventory

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one process, or of several."""

    memory: int = 0
    """Bytes that no other process has."""
    descriptors: int = 0
    threads: int = 0

    def __add__(self, other: Holding) -> Holding:
        return Holding(
            self.memory + other.memory,
            self.descriptors + other.descriptors,
            self.threads + other.threads,
        )


@dataclass(frozen=True, slots=True)
class Census:
    """At one moment."""

    daemon: Holding
    spawner: Holding
    wardens: Holding
    """All together."""
    zombies: frozenset[int]
    """Children of them that nobody has waited for."""


def take(base: Path, daemon: int, sandboxes: Collection[str]) -> Census:
    """Count. Raises FileNotFoundError if one of them has ended."""
    processes = dict(_processes())
    spawners = [pid for pid, (parent, state) in processes.items() if parent == daemon and state != "Z"]
    wardens = [inventory.warden(base, sandbox) for sandbox in sandboxes]
    ours = {daemon, *spawners, *wardens}
    return Census(
        _holding(daemon),
        sum(map(_holding, spawners), Holding()),
        sum(map(_holding, wardens), Holding()),
        frozenset(pid for pid, (parent, state) in processes.items() if parent in ours and state == "Z"),
    )


def _processes() -> Iterator[tuple[int, tuple[int, str]]]:
    """Parent and state of every process (proc(5), /proc/pid/stat)."""
    for directory in PROC.glob("[0-9]*"):
        try:
            state, parent, *_ = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        yield int(directory.name), (int(parent), state)


def _holding(pid: int) -> Holding:
    directory = PROC / str(pid)
    private = 0
    for line in (directory / "smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1]) * 1024
    return Holding(
        private, len(list((directory / "fd").iterdir())), len(list((directory / "task").iterdir()))
    )
