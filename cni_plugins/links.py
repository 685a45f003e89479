"""THE SEAM: what `bridge` and `loopback` need of an operating system's interfaces.

Linux does it with veth pairs and netlink alone (`linux.py`); FreeBSD with epairs, if_bridge ioctls and netlink.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cni_plugins.errors import ConfigurationError
from cni_plugins.rtnetlink import Link
from cni_plugins.types import Address, InterfaceAddress, NetworkStack, SocketSource


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of connected interfaces: one end in a bridge on the host, the other inside a pod."""

    bridge: str
    host_name: str
    host_mac: str
    pod_name: str
    pod_mac: str
    mtu: int
    isolated: bool = False


class Links(Protocol):
    """The interfaces of a host's network stack, and those that it gives to pods.

    Every method blocks, opens its own sockets, and raises KernelError unless it says otherwise.
    """

    def find(self, name: str) -> Link | None:
        """Return a link of the host, None if there is none of that name."""

    def is_bridge(self, link: Link) -> bool:
        """Tell whether a link of the host is a bridge."""

    def make_bridge(self, name: str, mac: str, mtu: int) -> None:
        """Create a bridge, up; leave one of that name alone if somebody was quicker."""

    def prepare_bridge(self, name: str, mtu: int, addresses: Sequence[InterfaceAddress]) -> None:
        """Bring a bridge up with that MTU and at least those addresses."""

    def all(self) -> list[Link]:
        """Return every link of the host."""

    def make_pair(self, pair: Pair, stack: NetworkStack) -> None:
        """Create a pair: the host end up and in the bridge, the pod's end in the stack, under its final name.

        All or nothing. Raises AttachmentExistsError if either name is taken, NotAttachedError if the bridge is
        not there.
        """

    def configure_pod_end(
        self,
        name: str,
        stack: NetworkStack,
        addresses: Sequence[InterfaceAddress],
        gateways: Sequence[Address],
    ) -> None:
        """Give the pod's end its addresses, bring it up, and lead the default routes over it."""

    def pod_state(
        self, name: str, stack: NetworkStack
    ) -> tuple[Link, list[InterfaceAddress], list[Address]] | None:
        """Return a pod's link, its addresses and the gateways of its default routes; None without the link."""

    def disconnect(self, name: str) -> bool:
        """Take a pair's host end down and out of its bridge, quickly; False if it was not there."""

    def delete(self, name: str) -> bool:
        """Delete a link of the host, and a pair's other end with it; False if it was not there."""

    def loopback_up(self, stack: NetworkStack) -> None:
        """Bring the loopback interface of a stack up, with 127.0.0.1 and ::1."""


def for_this_system(host: SocketSource) -> Links:
    """Return the links of a host's stack on the system that runs us.

    Raises ConfigurationError on a system that there is no driver for.
    """
    if sys.platform == "linux":
        from cni_plugins.linux.links import LinuxLinks  # noqa: PLC0415 - a driver is loaded on its own system only

        return LinuxLinks(host)
    if sys.platform.startswith("freebsd"):
        from cni_plugins.freebsd.links import FreeBSDLinks  # noqa: PLC0415

        return FreeBSDLinks(host)
    raise ConfigurationError(f"no network driver for {sys.platform}; there are ones for linux and freebsd")
