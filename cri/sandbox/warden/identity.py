"""Which process a sandbox's warden is, written down: its socket may be removed, and it may say nothing.

A pid alone is not enough, as another process may have the number by now; with the time at which it was started it is one
process of one boot.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cri.sandbox import small_files, wire

IDENTITY_FILE = "warden.json"

StartOf = Callable[[int], str | None]
"""When a process was started, in the words of its kernel, which tell apart what had its number before; None if it is gone."""


@dataclass(frozen=True, slots=True)
class WardenIdentity:
    """A process."""

    pid: int
    started: str

    def lives(self, start_of: StartOf) -> bool:
        """Whether it is there. Raises OSError if the kernel does not tell."""
        return start_of(self.pid) == self.started

    def signal(self, number: signal.Signals, start_of: StartOf) -> bool:
        """Send it a signal; False if it is gone."""
        if not self.lives(start_of):
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def read(directory: str) -> WardenIdentity | None:
    """What is written down in a sandbox's directory, None if nothing is. Blocks. Raises OSError, WireError."""
    try:
        return wire.loads(WardenIdentity, small_files.read(Path(directory, IDENTITY_FILE)))
    except FileNotFoundError:
        return None


def write(directory: str, identity: WardenIdentity) -> None:
    """Write it down. Blocks. Raises OSError."""
    small_files.write(Path(directory, IDENTITY_FILE), json.dumps(wire.encode(identity)).encode("ascii"))
