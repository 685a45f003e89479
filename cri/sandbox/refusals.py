"""What is refused of a config because of what else it says, or of what this node is.

What can be refused by looking at a single field is in the table of `cri.rpc.fields`. Everything here may block.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError, UnsupportedError
from cri.sandbox import places
from cri.sandbox.host import Features
from cri.sandbox.spec import MountSpec, PortMapping, Propagation

_SELINUX = Path("/sys/fs/selinux/enforce")
_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class NodeMount:
    """A mount of the node, by proc(5), mountinfo."""

    target: str
    shared: bool
    slave: bool
    type: str


def check_selinux(options: v1.SeLinuxOption | None) -> None:
    """Refuse labels where they would mean something. Raises UnsupportedError."""
    if options is not None and bool(options) and _SELINUX.exists():
        raise UnsupportedError(
            "selinux_options: processes are not labelled, and this node has SELinux; leave the options out"
        )


def check_capabilities(names: Iterable[str], features: Features) -> None:
    """Refuse to add what no container has here. Raises UnsupportedError."""
    if features.capabilities is not None and (beyond := sorted(set(names) - features.capabilities)):
        raise UnsupportedError(
            f"add_capabilities {', '.join(beyond)}: this host has no such right to give; leave it out, "
            "or make container and sandbox privileged"
        )


def check_mounts(mounts: Iterable[MountSpec]) -> None:
    """See that all mounts of a config can be there. Raises InvalidArgumentError, UnsupportedError."""
    there: Sequence[NodeMount] | None = None
    for mount in mounts:
        target = places.cleaned(mount.target)
        where = f"mount on {mount.target}"
        if target == "/":
            raise InvalidArgumentError(f"{where}: it would hide the container's whole root; mount below it")
        in_proc = places.is_inside_proc(target)
        if not in_proc and target != "/proc" and mount.propagation is Propagation.PRIVATE:
            continue
        there = node_mounts() if there is None else there
        if in_proc or (target == "/proc" and _mount_of(mount.source, there).type != "proc"):
            raise InvalidArgumentError(
                f"{where}: nothing is mounted inside /proc but {', '.join(sorted(places.IN_PROC))}"
            )
        if mount.propagation is not Propagation.PRIVATE:
            _check_propagation(mount, there)


def check_ports(ports: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
    """The mappings, each once. Raises InvalidArgumentError for two that want the same port of the node."""
    found: dict[tuple[str, int], list[PortMapping]] = {}
    for port in ports:
        others = found.setdefault((port.protocol, port.host_port), [])
        if port in others:
            continue
        for other in others:
            if port.host_ip == other.host_ip or not (port.host_ip and other.host_ip):
                raise InvalidArgumentError(
                    f"port_mappings: {port.protocol} port {port.host_port} of the node is to lead to "
                    f"{other.container_port} and to {port.container_port}"
                )
        others.append(port)
    return tuple(port for several in found.values() for port in several)


def node_mounts(mountinfo: bytes | None = None) -> Sequence[NodeMount]:
    """The mounts of the node as this process sees them, in the order in which they were made; none without a proc(5)."""
    if mountinfo is None:
        try:
            mountinfo = _MOUNTINFO.read_bytes()
        except FileNotFoundError:
            return ()
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(b" - ")
        words = before.split(b" ")
        tags = [tag.partition(b":")[0] for tag in words[6:]]
        found.append(
            NodeMount(
                os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), words[4])),
                b"shared" in tags,
                b"master" in tags,
                after.split(b" ")[0].decode(),
            )
        )
    return found


def _mount_of(path: str, mounts: Iterable[NodeMount]) -> NodeMount:
    """The mount that a path lies in."""
    best = NodeMount("", shared=False, slave=False, type="")
    for mount in mounts:
        inside = mount.target in ("/", path) or path.startswith(f"{mount.target}/")
        # Of two on the same path the later one hides the earlier.
        if inside and len(mount.target) >= len(best.target):
            best = mount
    return best


def _check_propagation(mount: MountSpec, mounts: Sequence[NodeMount]) -> None:
    source = _mount_of(mount.source, mounts)
    if source.shared or (source.slave and mount.propagation is Propagation.HOST_TO_CONTAINER):
        return
    wanted = "shared" if mount.propagation is Propagation.BIDIRECTIONAL else "shared or slave"
    raise InvalidArgumentError(
        f"mount on {mount.target}: path {mount.source!r} is mounted on {source.target!r} but it is not a {wanted} mount: "
        f"`mount --make-rshared {source.target or '/'}` makes it one, or use PROPAGATION_PRIVATE"
    )
