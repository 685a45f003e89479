"""What a warden needs of its kernel. `cri.sandbox.linux.driver` and `cri.sandbox.freebsd.driver` have a `make_driver()`.

A driver runs inside the warden: single thread, standard library and kernel binding only, and it must not wait
for anything that a container can delay.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cri.sandbox.spec import ContainerSpec, ProcessSpec, SandboxSpec
from cri.sandbox.warden.launch import Child, Report, Stdio


@dataclass(frozen=True, slots=True)
class Plan:
    """A container as the daemon prepared it: what `spec.json` in its directory holds."""

    spec: ContainerSpec
    host: dict[str, Any]
    """What the driver in the daemon tells the driver in the warden (root filesystem, limits)."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running container."""

    plan: Plan
    first: int
    """Its first process."""
    report: Report
    """Who that runs as; without its terminal."""


class Driver(Protocol):
    """One kernel, as seen from inside a warden."""

    def enter(self, sandbox: SandboxSpec) -> Sequence[int]:
        """Make the sandbox and enter it. Returns descriptors for the daemon (Linux: the network namespace)."""

    def start(self, plan: Plan, stdio: Stdio, target: int) -> Child:
        """Fork a container's first process. It reports, then executes the program.

        `target` is the first process of the container whose processes it shall see, 0 for none.
        """

    def exec(self, target: Target, process: ProcessSpec, stdio: Stdio, name: str) -> Child:
        """Start a process in a running container, as the user of its first one. `name` is unique in it.

        Raises StartError, if that is known at once.
        """

    def signal(self, plan: Plan, first: int, number: int, *, again: bool) -> bool:
        """Send a signal to a container's first process. False if the kernel may have dropped it: try `again` later."""

    def kill(self, plan: Plan, first: int) -> bool:
        """KILL everything in the container once. True when nothing was left to kill.

        `first` is its first process, 0 if that has ended.
        """

    def kill_exec(self, plan: Plan, pid: int, name: str) -> None:
        """KILL an exec's process and whatever it has started."""

    def end_exec(self, plan: Plan, name: str) -> None:
        """Give back what the driver made for an exec that has ended."""

    def oom_killed(self, plan: Plan, number: int) -> bool:
        """Whether the memory limit has killed a process of the container. `number` is the signal that ended its first, or 0."""

    def make_socket(self, family: int, type_: int, protocol_number: int) -> socket.socket:
        """A new socket that belongs to the pod's network stack."""

    def sysctl(self, name: str, value: str | None) -> str:
        """A variable of the pod's network stack, and with a value, its value before that was set."""

    def close(self) -> None:
        """Let go of the sandbox; all containers have ended."""
