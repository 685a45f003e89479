"""A start that starts nothing: it has a spare touch what a container's first start will touch.

All of it is the code that containers go through. Only the launcher is a prompter, who answers what a launcher would.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cri.sandbox import wire
from cri.sandbox.launcher.client import RECORD, Kind
from cri.sandbox.launcher.operations import Operation
from cri.sandbox.launcher.plan import Step, encode
from cri.sandbox.spec import ContainerSpec, MountSpec, ProcessSpec, Resources, Security
from cri.sandbox.warden import protocol
from cri.sandbox.warden.container import SupervisedContainer
from cri.sandbox.warden.driver import Driver, Plan
from cri.sandbox.warden.loop import Loop

NOWHERE = "/nowhere"
"""Below which nothing is."""
_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log")
_MASKED = ("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Prompter:
    """Says of each plan that it was executed: every SEND sends the same descriptor, and what becomes a program was born."""

    def __init__(self, sent: int) -> None:
        self._sent = sent

    def launch(self, steps: Sequence[Step], descriptors: Sequence[int] = ()) -> socket.socket:
        """The report of a launch. Raises PlanError and OSError."""
        encode(steps, 1 + len(descriptors))
        report, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            for number, step in enumerate(steps):
                if step.operation is Operation.SEND:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._sent]))]
                    ours.sendmsg([RECORD.pack(Kind.SENT, number, 0, 0)], rights)
            if steps[-1].operation is Operation.EXECUTE:
                ours.send(RECORD.pack(Kind.BORN, 0, 0, os.getpid()))  # nobody's child, and reaped by nobody
        return report


def rehearse(driver: Callable[[Prompter], Driver], host: Mapping[str, Any]) -> None:
    """Go the way of a container's first process, with a driver whose launcher is the prompter. Raises HostError or OSError.

    `host` is what a plan has for that driver.
    """
    loop = Loop()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        # As wardens get it: in writing.
        spec = wire.decode(ContainerSpec, json.loads(wire.dumps(_example())))
        plan = Plan(spec, json.loads(json.dumps(dict(host))))
        _go(SupervisedContainer(plan, driver(Prompter(null)), loop, null), loop)
    finally:
        os.close(null)
        loop.close()


def _go(container: SupervisedContainer, loop: Loop) -> None:
    over: list[int] = []
    try:
        container.start(0, lambda: over.append(0), over.append)
        while not over:
            loop.turn()
        if container.failure is not None:
            raise container.failure
        container.running()
        protocol.encode({"ok": wire.encode(container.started)})
    finally:
        container.close()


def _example() -> ContainerSpec:
    """A container as the kubelet asks for most of them."""
    return ContainerSpec(
        "example",
        "example",
        NOWHERE,
        (),
        ProcessSpec(("/example",), ("PATH=/bin",)),
        mounts=tuple(MountSpec(f"{NOWHERE}{path}", path) for path in _FILES),
        resources=Resources(cpu_shares=2, oom_score_adj=0),
        security=Security(masked_paths=_MASKED, readonly_paths=_READONLY),
        log_path="/dev/null",
    )
