"""Checks of a Linux node, for development: what the driver needs of the kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cri.config import Config
from cri.doctor.finding import Check, Finding, failure, note, ok, warning
from cri.sandbox.linux.cgroup_hierarchies import Hierarchies
from cri.sandbox.linux.seccomp import library, selection

_SYSCTL = Path("/proc/sys/net")


def checks(config: Config) -> Sequence[Check]:
    """In the order in which they are shown."""
    return (
        Check("binding", binding),
        Check("cgroups", cgroups),
        Check("seccomp", seccomp),
        Check("overlay", partial(overlay, config.snapshotter, Path("/proc/filesystems"))),
        Check("forwarding", partial(forwarding, config.network.subnets, _SYSCTL)),
    )


def binding() -> Iterator[Finding]:
    """Whether the kernel binding was compiled."""
    try:
        from cri.sandbox.linux import kernel  # noqa: PLC0415 - compiled at install
    except ImportError as error:
        yield failure("binding", f"the kernel binding cannot be imported: {error}", "scripts/setup")
    else:
        yield ok("binding", f"the kernel can be spoken to ({kernel.__name__})")


def cgroups() -> Iterator[Finding]:
    """Whether limits can be enforced."""
    if missing := Hierarchies.detect().missing_controllers():
        message = f"no cgroup controller {', '.join(missing)}: its limits are not enforced"
        yield warning("cgroups", message, "echo '+memory +cpu +pids' > /sys/fs/cgroup/cgroup.subtree_control")
    else:
        yield ok("cgroups", "memory, cpu and pids can be limited")


def seccomp() -> Iterator[Finding]:
    """Whether system calls can be limited."""
    if missing := selection.missing():
        yield warning("seccomp", f"containers with a seccomp profile are refused: {missing}", library.REMEDY)
    else:
        yield ok("seccomp", "system calls can be limited by profiles")


def overlay(snapshotter: str, filesystems: Path) -> Iterator[Finding]:
    """Whether there is overlayfs, so that containers share their image's files."""
    if "overlay" in filesystems.read_text().split():
        yield ok("overlay", "overlayfs is there")
    elif snapshotter == "overlay":
        yield failure(
            "overlay", "snapshotter is overlay, but this kernel has none loaded", "modprobe overlay"
        )
    else:
        message = (
            "no overlayfs: every container gets a copy of its image, unless it is loaded before the daemon"
        )
        yield note("overlay", message, "modprobe overlay")


def forwarding(subnets: Sequence[str], sysctls: Path) -> Iterator[Finding]:
    """Whether pods can reach beyond the node."""
    for version in {ipaddress.ip_network(subnet).version for subnet in subnets}:
        file = sysctls / ("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding")
        name = str(file.relative_to(sysctls.parent)).replace("/", ".")
        if int(file.read_text()):
            yield ok("forwarding", f"IPv{version} is forwarded")
        else:
            message = f"IPv{version} is not forwarded; the daemon turns it on with the first pod"
            yield note("forwarding", message, f"sysctl -w {name}=1")
