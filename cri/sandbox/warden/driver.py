"""What a warden needs of its kernel. `cri.sandbox.linux.driver` and `cri.sandbox.freebsd.driver` have a `make_driver()`.

A `prepare()`, if there is one, is called in the spawner, before it forks any warden. With a `fits_spare(sandbox)` there is always
one that has gone ahead (`spare.py`), and becomes the warden of the next sandbox for which that says so.

A driver runs inside the warden: single thread, standard library and kernel binding only, and it must not wait
for anything that a container can delay.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cri.sandbox.spec import ContainerSpec, ProcessSpec, SandboxSpec
from cri.sandbox.warden.launch import Report, Stdio
from cri.sandbox.warden.launching import Launcher, Way


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


Reported = Callable[[Report], None]
"""Gets what is known of a process that has become its program; its terminal comes with it."""


class Driver(Protocol):
    """One kernel, as seen from inside a warden."""

    @property
    def launcher(self) -> Launcher:
        """Who executes plans in the sandbox that was entered."""

    def go_ahead(self) -> None:
        """Do what can be done before it is known for which sandbox; called at most once, before `enter`.

        Makes nothing that outlives the process. Raises OSError or HostError.
        """

    def enter(self, sandbox: SandboxSpec) -> Sequence[int]:
        """Make the sandbox and enter it. Returns descriptors for the daemon (Linux: the network namespace)."""

    def start(self, plan: Plan, stdio: Stdio, target: int, reported: Reported) -> Way:
        """The way of a container's first process.

        `target` is the first process of the container whose processes it shall see, 0 for none. The descriptors of `stdio`
        stay open until the way is over.
        """

    def exec(self, target: Target, process: ProcessSpec, stdio: Stdio, name: str, reported: Reported) -> Way:
        """The way of a process into a running container, as the user of its first one. `name` is unique in it."""

    def end(self, plan: Plan) -> None:
        """Give back what was kept for a container whose first process has ended, or never ran."""

    def signal(self, plan: Plan, first: int, number: int, *, again: bool) -> bool:
        """Send a signal to a container's first process. False if the kernel may have dropped it: try `again` later."""

    def kill(self, plan: Plan, first: int) -> bool:
        """KILL everything in the container once. True when nothing was left to kill.

        `first` is its first process, 0 if that has ended or is on its way.
        """

    def kill_exec(self, plan: Plan, pid: int, name: str) -> None:
        """KILL an exec's process and whatever it has started. `pid` is 0 while it is on its way."""

    def end_exec(self, plan: Plan, name: str) -> bool:
        """Give back what the driver made for an exec that has ended. False if that is in use: try again later."""

    def oom_killed(self, plan: Plan, number: int) -> bool:
        """Whether the memory limit has killed a process of the container. `number` is the signal that ended its first, or 0."""

    def make_socket(self, family: int, type_: int, protocol_number: int) -> socket.socket:
        """A new socket that belongs to the pod's network stack."""

    def sysctl(self, name: str, value: str | None) -> str:
        """A variable of the pod's network stack, and with a value, its value before that was set."""

    def close(self) -> None:
        """Let go of the sandbox; all containers have ended."""
