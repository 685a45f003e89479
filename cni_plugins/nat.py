"""THE SEAM: what `portmap` and `masquerade` need of an operating system's address translation.

Linux does it with nftables in a table of our own (`linux/nat.py`), FreeBSD with pf in anchors of our own
(`freebsd/nat.py`). Whatever else is configured there is never touched.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cni_plugins.errors import ConfigurationError
from cni_plugins.types import Address, InterfaceAddress, Network, SocketSource

PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to a port of a pod.

    `host_ip` is the one address of the node that it is open on; None stands for all of the pod address's family.
    The prefix of `pod` tells who may hear the pod's answers without the node between: to them a connection that went
    through the host port must come from the node.
    """

    protocol: str
    host_port: int
    pod: InterfaceAddress
    pod_port: int
    host_ip: Address | None = None
    masquerade_all: bool = False
    """The pod sees the node's address as every client's, not only where the answers would get lost otherwise."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Addresses of a pod that become the node's on packets to anywhere but the `exceptions`."""

    addresses: tuple[Address, ...]
    exceptions: tuple[Network, ...] = ()


class Nat(Protocol):
    """The translations of one network, by owner.

    Every method blocks, may be called by several threads at once, and raises KernelError; each change happens as a
    whole or not at all. An owner's host ports and its masquerading are independent of each other. Owners are opaque
    strings of at most 200 characters.
    """

    def publish(self, owner: str, ports: Sequence[HostPort]) -> None:
        """Open an owner's host ports: these, and no others than these. Raises ConfigurationError for what cannot be."""

    def withdraw(self, owner: str) -> None:
        """Close an owner's host ports; succeeds if there are none."""

    def masquerade(self, owner: str, wanted: Masquerade) -> None:
        """Translate an owner's addresses: these, and no others than these."""

    def unmasquerade(self, owner: str) -> None:
        """Stop translating an owner's addresses; succeeds if there are none."""

    def restore_ports(self, wanted: Mapping[str, Sequence[HostPort]]) -> None:
        """Make the kernel's host ports of this network exactly these, whatever a crash or somebody's flush has left."""

    def restore_masquerades(self, wanted: Mapping[str, Masquerade]) -> None:
        """Make the kernel's masquerading of this network exactly this, likewise."""

    def kill_states(self, addresses: Sequence[Address]) -> None:
        """Forget every connection from or to addresses that are about to be another pod's.

        An address that has a host port or is masqueraded still may be passed over, for new connections may begin: who
        ends the last of it calls this again.
        """

    def missing(self, owner: str) -> list[str]:
        """Return what is to be translated for an owner and the kernel does not, in words; empty if it does all."""

    def lost(self) -> list[str]:
        """Return, a phrase each, what the kernel has not any more of what holds the translations that there are.

        A cheap look, which does not find everything that somebody may have changed; `missing` does for one owner.
        """

    def problems(self) -> list[str]:
        """Return what keeps translations from taking effect, a sentence each with what to do; empty if nothing does."""


def for_this_system(host: SocketSource, network: str) -> Nat:
    """Return the translations of a network in a host's stack, on the system that runs us.

    `network` is the name that the kernel's objects are called after. Raises ConfigurationError on a system that there
    is no driver for.
    """
    if sys.platform == "linux":
        from cni_plugins.linux.nat import NftNat  # noqa: PLC0415 - a driver is loaded on its own system only

        return NftNat(host, network)
    if sys.platform.startswith("freebsd"):
        from cni_plugins.freebsd.nat import PfNat  # noqa: PLC0415

        return PfNat(host, network)
    raise ConfigurationError(f"no address translation for {sys.platform}; there is one for linux and freebsd")
