"""THE SEAM: what plugins need of an operating system's interfaces.

Linux does it with veth pairs and netlink alone (`linux/links.py`); FreeBSD with epairs, if_bridge ioctls and netlink
(`freebsd/links.py`). What both do alike is in `common_links.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from cni_plugins.errors import ConfigurationError
from cni_plugins.rtnetlink import Link
from cni_plugins.types import Address, InterfaceAddress, NetworkStack, Route, SocketSource


@dataclass(frozen=True, slots=True)
class Port:
    """How an interface is a member of a bridge."""

    bridge: str
    isolated: bool = False
    """It does not hear the other members that are isolated, nor they it."""
    hairpin: bool = False
    """What it sends may be sent back to it. FreeBSD's bridges cannot do that."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of connected interfaces: one end on the host, in a bridge if `port` says so, the other inside a pod."""

    host_name: str
    host_mac: str
    pod_name: str
    pod_mac: str
    mtu: int = 0
    """Bytes; 0 is the kernel's default."""
    port: Port | None = None


@dataclass(frozen=True, slots=True)
class State:
    """An interface as it is now."""

    link: Link
    addresses: tuple[InterfaceAddress, ...]
    routes: tuple[Route, ...]

    def gateway(self, address: InterfaceAddress) -> Address | None:
        """Return who leads from here to everywhere else for the family of an address; None if nobody does."""
        ways = [route.gw for route in self.routes if not route.dst.prefixlen and route.gw is not None]
        return next((gw for gw in ways if gw.version == address.version), None)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Properties of an interface; what is None is not to be changed, or was not."""

    mac: str | None = None
    mtu: int | None = None
    """Bytes."""
    promiscuous: bool | None = None
    all_multicast: bool | None = None
    tx_queue_length: int | None = None
    """Packets."""

    def given(self) -> dict[str, Any]:
        """Return those that are not None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class Links(Protocol):
    """The interfaces of a host's network stack, and those that it gives to pods.

    Every method blocks, opens its own sockets, and raises KernelError unless it says otherwise.
    """

    loopback: ClassVar[str]
    """What the loopback interface is called."""
    unshared: ClassVar[frozenset[int]]
    """IP versions of which an address can be that of one interface only."""

    def find(self, name: str) -> Link | None:
        """Return a link of the host, None if there is none of that name."""

    def all(self) -> list[Link]:
        """Return every link of the host."""

    def is_bridge(self, link: Link) -> bool:
        """Tell whether a link of the host is a bridge."""

    def make_bridge(self, name: str, mac: str, mtu: int) -> None:
        """Create a bridge, to be prepared; leave one of that name alone. An MTU of 0 is the kernel's default."""

    def prepare_bridge(
        self,
        link: Link,
        addresses: Sequence[InterfaceAddress],
        *,
        mtu: int = 0,
        promiscuous: bool = False,
        replace: bool = False,
    ) -> None:
        """Bring a bridge up with at least those addresses, or the same ones of larger subnets.

        Set its MTU unless that is 0, and make it promiscuous if asked to.

        Raises ConfigurationError if it has another address in the same subnet, unless that may be replaced, and where
        IPv6 is switched off.
        """

    def make_pair(self, pair: Pair, stack: NetworkStack) -> None:
        """Create a pair: the host end up and in its bridge, the pod's end in the stack, under its final name.

        The host's end takes no router from advertisements.

        All or nothing. Raises AttachmentExistsError if either name is taken, NotAttachedError if the bridge is
        not there.
        """

    def restore(self, pair: Pair) -> None:
        """Bring a host end that is there up, and into its bridge; it takes no router from advertisements."""

    def configure(
        self,
        stack: SocketSource,
        name: str,
        addresses: Sequence[InterfaceAddress] = (),
        routes: Sequence[Route] = (),
        *,
        advertised: bool = True,
    ) -> None:
        """Give an interface of a stack its addresses, bring it up, and lead routes over it, in their order.

        Unless `advertised`, it takes no router from advertisements, but for a stack that was made to take some.

        Raises ConfigurationError for what the system's routes cannot have, and where IPv6 is switched off.
        """

    def state(self, stack: SocketSource, name: str) -> State | None:
        """Return what an interface of a stack has; None without it."""

    def glance(self, name: str) -> State | None:
        """Return a link of the host with its addresses and without its routes, of which there may be many."""

    def states(self, stack: SocketSource) -> dict[str, State]:
        """Return what every interface of a stack has."""

    def take_off(self, name: str) -> Callable[[], object] | None:
        """Take a pair off the network now; return what remains to be done and may take its time, None if nothing does.

        What remains concerns this pair alone, though another may have its name by then.
        """

    def delete(self, name: str) -> bool:
        """Delete a link of the host, and a pair's other end with it; False if it was not there."""

    def loopback_up(self, stack: NetworkStack) -> None:
        """Bring the loopback interface of a stack up, with 127.0.0.1 and ::1."""

    def ignore_advertisements(self, *names: str) -> None:
        """Have links of the host take no router from advertisements that they hear, now and later."""

    def refused(self, name: str, versions: Collection[int]) -> list[str]:
        """Return why a link of the host could not have addresses of some IP versions, a sentence each.

        It need not be there yet.
        """

    def enable_forwarding(self, versions: Collection[int]) -> None:
        """Have the host forward packets of some IP versions, if it does not yet. Nothing switches it off again.

        A default route that it has by a router's advertisements stays, and no other interface begins to take any.
        """

    def not_forwarding(self, versions: Collection[int]) -> list[int]:
        """Return those of some IP versions of which the host forwards no packets."""

    untunable: Mapping[str, str]
    """Of a `Tuning` the fields that the system has nothing for, and why."""

    def tune(self, stack: SocketSource, name: str, wanted: Tuning) -> Tuning:
        """Change an interface of a stack; return all that it was before. Raises NotAttachedError without it."""


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
