"""FreeBSD: bridges and epairs, by netlink(4) where it reaches and by ioctl(2) where it does not.

No single request makes a pair, as it does on Linux. So that a process may be killed between any two steps, each end in
the making can be found: the system call that creates an epair also writes into its description for whom it is, and
until the host's end has its final name it counts under that name because of the description.

Pairs are made on the host and the pod's end is lent to the jail. Made inside the jail, with the host's end taken out
of it, they would end with the jail, as on Linux; but the kernel (15.1) panics when such an end is destroyed from the
host just while its jail ends, for the record of the jail's drivers that it looks up is not held.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import ClassVar

from cni_plugins.common_links import CommonLinks, perform_unless, taken
from cni_plugins.errors import ConfigurationError, KernelError, NotAttachedError
from cni_plugins.freebsd import ioctl
from cni_plugins.freebsd.advertising import advertise
from cni_plugins.freebsd.ioctl import Interfaces
from cni_plugins.links import Pair, Port, Tuning
from cni_plugins.rtnetlink import GONE, Link, Routes, address_add
from cni_plugins.types import InterfaceAddress, NetworkStack, Route, SocketSource

LOOPBACK_ADDRESSES = ip_interface("127.0.0.1/8"), ip_interface("::1/128")
NO_SUCH_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPFNOSUPPORT})
GROUP = "cni-pods"
"""The interface group of all host ends: `ifconfig -g cni-pods`, `block on cni-pods` in pf.conf(5)."""

_BRIDGE, _EPAIR = "bridge", "epair"
_MARK = "cni_plugins "
_ADVERTISED_ROUTES = "net.inet6.ip6.rfc6204w3"
_FORWARDING = {4: "net.inet.ip.forwarding", 6: "net.inet6.ip6.forwarding"}
_UNKNOWN_TO_ROUTES = ("advmss", "priority", "scope")


class FreeBSDLinks(CommonLinks):
    """`links.Links` for FreeBSD. `move_target` is a jid."""

    loopback: ClassVar[str] = "lo0"
    unshared: ClassVar[frozenset[int]] = frozenset({6})
    untunable: Mapping[str, str] = {
        "tx_queue_length": "the queues of FreeBSD's interfaces are as long as their drivers make them"
    }

    def find(self, name: str) -> Link | None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes, Interfaces.of(self._host) as interfaces:
            link = routes.find(name)
            if link is None or link.kind != _EPAIR:
                return link
            bridge = next((b for b in interfaces.group(_BRIDGE) if name in _members(interfaces, b)), None)
            master = routes.find(bridge) if bridge else None
            return replace(link, master=master.index) if master else link

    def all(self) -> list[Link]:
        """See `links.Links`. Host ends in the making are among them, under the names that they are to have."""
        with Routes.of(self._host) as routes, Interfaces.of(self._host) as interfaces:
            links = routes.links()
            masters = {
                member: bridge.index
                for bridge in links
                if bridge.kind == _BRIDGE
                for member in _members(interfaces, bridge.name)
            }
        return _under_final_names([replace(link, master=masters.get(link.name, 0)) for link in links])

    def is_bridge(self, link: Link) -> bool:
        """See `links.Links`. The kind is the driver's name, whatever the interface is called."""
        return link.kind == _BRIDGE

    def make_bridge(self, name: str, mac: str, mtu: int) -> None:
        """See `links.Links`. Raises ConfigurationError for the name of an interface group.

        One that a killed process did not finish is finished; so is one that another thread is at, which does no harm:
        the bridge belongs to whoever gives it its name first.
        """
        with Routes.of(self._host) as routes, Interfaces.of(self._host) as interfaces:
            if interfaces.group(name):  # pf(4) takes both for one, and recurses without end
                raise ConfigurationError(
                    f"bridge {name} would be called like an interface group; end its name in a digit, as no group's does"
                )
            unfinished = [link.name for link in routes.links() if _made_for(link, _BRIDGE, name)]
            made = unfinished[0] if unfinished else _create(routes, _BRIDGE, name)
            try:
                interfaces.set_mac(made, mac)
                if mtu:
                    interfaces.set_mtu(made, mtu)
                interfaces.rename(made, name)
                routes.link_set(name, up=True)
            except KernelError as error:
                if error.errno in GONE:  # somebody was quicker with this very bridge
                    return
                self._undo(interfaces, error, made)
                if error.errno != errno.EEXIST:
                    raise

    def make_pair(self, pair: Pair, stack: NetworkStack) -> None:
        """See `links.Links`. Until the pod's end is moved nothing passes; everything it needs of the host is done then."""
        with Routes.of(self._host) as routes, Interfaces.of(self._host) as interfaces:
            if routes.find(pair.host_name) is not None:
                raise taken(pair)
            near = _create(routes, _EPAIR, pair.host_name)
            far = near.removesuffix("a") + "b"
            try:
                interfaces.set_mac(near, pair.host_mac)
                interfaces.set_mac(far, pair.pod_mac)
                if pair.mtu:
                    interfaces.set_mtu(near, pair.mtu)
                    interfaces.set_mtu(far, pair.mtu)
                _rename(interfaces, near, pair.host_name, pair)
                interfaces.join_group(pair.host_name, GROUP)
                _ignore_advertisements(self._host, pair.host_name, fresh=True)
                if pair.port is not None:
                    self._disable_ipv6(pair.host_name)
                    _join_bridge(interfaces, pair.host_name, pair.port)
                routes.link_set(pair.host_name, up=True)
                interfaces.move(far, stack.move_target)
                with Interfaces.of(stack) as inside:
                    _rename(inside, far, pair.pod_name, pair)
            except BaseException as error:
                # By its first name: whoever was quicker to take the other one keeps it.
                self._undo(interfaces, error, near, pair.host_name)
                raise

    def restore(self, pair: Pair) -> None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes, Interfaces.of(self._host) as interfaces:
            if pair.port is not None and pair.host_name not in _members(interfaces, pair.port.bridge):
                _join_bridge(interfaces, pair.host_name, pair.port)
            self.ignore_advertisements(pair.host_name)
            routes.link_set(pair.host_name, up=True)

    def configure(
        self,
        stack: SocketSource,
        name: str,
        addresses: Sequence[InterfaceAddress] = (),
        routes: Sequence[Route] = (),
        *,
        advertised: bool = True,
    ) -> None:
        """See `links.Links`. A route's table is a FIB; metrics but the MTU, priorities and scopes do not exist."""
        for route in routes:
            for word in _UNKNOWN_TO_ROUTES:
                if getattr(route, word) is not None:
                    raise ConfigurationError(
                        f"the route to {route.dst} is to have a {word}, which FreeBSD's routes cannot; leave it out"
                    )
        super().configure(stack, name, addresses, routes, advertised=advertised)

    def take_off(self, name: str) -> Callable[[], object] | None:
        """See `links.Links`. The pair is deleted now, see `delete`."""
        self.delete(name)
        return None

    def delete(self, name: str) -> bool:
        """See `links.Links`. Destroying the host's end destroys the pod's too, wherever that is by then.

        Do it before the jail is removed: a vnet(9) that dies sends the interfaces that it was lent back to the host, as
        `eth0`. Two of one name are one to pf(4), which frees its record of them with the first and reads it with the
        second; seen on 15.1 as a panic in pfi_kkif_purge(), with pf loaded and not even enabled.
        """
        with Interfaces.of(self._host) as interfaces:
            if self._destroy(interfaces, name):
                return True
            with Routes.of(self._host) as routes:
                unfinished = [link.name for link in routes.links() if _made_for(link, _EPAIR, name)]
            destroyed = [self._destroy(interfaces, each) for each in unfinished]
            return any(destroyed)

    def tune(self, stack: SocketSource, name: str, wanted: Tuning) -> Tuning:
        """See `links.Links`. The kernel itself announces a new MAC."""
        before = super().tune(stack, name, Tuning())
        with Interfaces.of(stack) as interfaces:
            if wanted.mac is not None:
                interfaces.set_mac(name, wanted.mac)
            if wanted.mtu is not None:
                interfaces.set_mtu(name, wanted.mtu)
            if wanted.promiscuous is not None:
                interfaces.set_promiscuous(name, on=wanted.promiscuous)
            if wanted.all_multicast is not None:
                interfaces.set_all_multicast(name, on=wanted.all_multicast)
        return replace(before, tx_queue_length=None)

    def loopback_up(self, stack: NetworkStack) -> None:
        """See `links.Links`. The kernel adds ::1 by itself, and 127.0.0.1 not."""
        name = self.loopback
        with Routes.of(stack) as routes:
            routes.link_set(name, up=True)
            index = routes.link_index(name)
            present = routes.addresses(name)
            for address in LOOPBACK_ADDRESSES:
                if address not in present:  # on a kernel without IPv6, or without IPv4, it cannot be
                    perform_unless(routes, NO_SUCH_FAMILY, address_add(index, name, address))

    def ignore_advertisements(self, *names: str) -> None:
        """See `links.Links`. Whether an interface listens when it is made is net.inet6.ip6.accept_rtadv's to say."""
        _ignore_advertisements(self._host, *names)

    def enable_forwarding(self, versions: Collection[int]) -> None:
        """See `links.Links`. The host is the stack that this process is in.

        The kernel takes no router of a host that forwards, unless it is told to by a switch for all interfaces. So that is
        only thrown where the default route leads over one that listens; what we make does not.
        """
        for version in self.not_forwarding(versions):
            if version == 6 and not ioctl.sysctl_read(_ADVERTISED_ROUTES) and self._is_advertised():
                ioctl.sysctl_write(_ADVERTISED_ROUTES, 1)
            ioctl.sysctl_write(_FORWARDING[version], 1)

    def not_forwarding(self, versions: Collection[int]) -> list[int]:
        """See `links.Links`."""
        return [version for version in versions if not ioctl.sysctl_read(_FORWARDING[version])]

    def _ignore_in_pod(self, stack: SocketSource, name: str) -> None:
        """A stack begins as the node did at boot, so nobody can have asked for it in there."""
        _ignore_advertisements(stack, name, fresh=True)

    def _is_advertised(self) -> bool:
        """Tell whether the node's IPv6 default route leads over an interface that takes router advertisements."""
        anywhere = ip_network("::/0")
        with Routes.of(self._host) as routes:
            ways = {at for at, route in routes.all_routes() if route.dst == anywhere}
            names = [link.name for link in routes.links() if link.index in ways]
        if not names:
            return False
        with Interfaces.of(self._host, socket.AF_INET6) as interfaces:
            return any(interfaces.listens(name) for name in names)

    def _announce(self, stack: SocketSource, link: Link, addresses: Sequence[InterfaceAddress]) -> None:
        """The kernel does it for IPv4."""
        advertise(stack, link.index, link.name, link.mac, addresses)

    def _disable_ipv6(self, name: str) -> None:
        """Keep a member of a bridge free of addresses; it would get some where net.inet6.ip6.accept_rtadv is 1."""
        try:
            with Interfaces.of(self._host, socket.AF_INET6) as interfaces:
                interfaces.disable_ipv6(name)
        except KernelError as error:
            if error.errno not in NO_SUCH_FAMILY:  # a kernel without IPv6
                raise

    def _undo(self, interfaces: Interfaces, error: BaseException, *names: str) -> None:
        """Destroy an interface, under the first name that it has, because of an error.

        That stays the one that the caller hears of.
        """
        try:
            any(self._destroy(interfaces, name) for name in names)
        except KernelError as second:
            error.add_note(f"and the undo failed: {second}")

    @staticmethod
    def _destroy(interfaces: Interfaces, name: str) -> bool:
        """Destroy an interface; False if it was not there."""
        try:
            interfaces.destroy(name)
        except KernelError as error:
            if error.errno in GONE:
                return False
            raise
        return True


def _ignore_advertisements(stack: SocketSource, *names: str, fresh: bool = False) -> None:
    try:
        with Interfaces.of(stack, socket.AF_INET6) as interfaces:
            for name in names:
                try:
                    interfaces.ignore_advertisements(name, fresh=fresh)
                except KernelError as error:
                    if error.errno not in GONE:
                        raise
    except KernelError as error:
        if error.errno not in NO_SUCH_FAMILY:  # a kernel without IPv6
            raise


def _join_bridge(interfaces: Interfaces, name: str, port: Port) -> None:
    try:
        interfaces.bridge_add(port.bridge, name)
    except KernelError as error:
        if error.errno == errno.ENXIO:
            raise NotAttachedError(f"bridge {port.bridge} for {name} is not there; make it first") from error
        raise
    if port.isolated:
        interfaces.bridge_isolate(port.bridge, name)


def _rename(interfaces: Interfaces, name: str, new: str, pair: Pair) -> None:
    try:
        interfaces.rename(name, new)
    except KernelError as error:
        if error.errno == errno.EEXIST:
            raise taken(pair) from error
        raise


def _members(interfaces: Interfaces, bridge: str) -> list[str]:
    try:
        return interfaces.bridge_members(bridge)
    except KernelError as error:
        if error.errno in GONE:  # since it was listed
            return []
        raise


def _create(routes: Routes, kind: str, name: str) -> str:
    """Create an interface that is to have a name; return the one that it has until then."""
    try:
        return routes.link_create(kind, _MARK + name)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        text = f"the kernel does not know {kind}, run kldload if_{kind}"
        raise KernelError(error.errno, error.operation, error.object, text) from error


def _made_for(link: Link, kind: str, name: str) -> bool:
    """Tell whether a link is on its way to a name that it has not yet."""
    return link.kind == kind and link.alias == _MARK + name and link.name != name


def _under_final_names(links: Sequence[Link]) -> list[Link]:
    """Call host ends in the making what they are to be called, as long as nothing else has that name."""
    taken = {link.name for link in links}
    found = []
    for link in links:
        final = link.alias.removeprefix(_MARK)
        if final not in taken and _made_for(link, _EPAIR, final):
            found.append(replace(link, name=final))
        else:
            found.append(link)
    return found
