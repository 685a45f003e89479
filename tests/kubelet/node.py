"""The runtime that a kubelet works with in tests: a daemon that can be killed, and what is left of its pods."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import inventory
from tests.kubelet.images import Images

PATIENCE = 10.0
"""Seconds for what is given back behind the caller."""


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon on private directories."""

    base: Path
    """Of the daemon; its state is in `state`, its socket in `run`."""
    bridge: str
    subnets: Sequence[str]
    """IPv4 first."""
    images: Images
    start: Callable[[], object]
    """Returns once the daemon answers."""
    kill: Callable[[], None]
    """Without any warning."""
    pid: Callable[[], int]
    """The daemon's."""

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.base / "run/cri-jails.sock"

    def left(self, containers: Collection[str]) -> list[str]:
        """What kernel and disk have of pods that were removed; `containers` are all that there were."""
        deadline = time.monotonic() + PATIENCE
        while found := self._left(containers):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return found

    def _left(self, containers: Collection[str]) -> list[str]:
        there = inventory.take(self.base, self.bridge, containers)
        found = {each.name: getattr(there, each.name) for each in dataclasses.fields(there)}
        return [f"{name}: {value}" for name, value in found.items() if value]
