"""Linux: bridges and veth pairs, by route netlink alone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_interface
from typing import ClassVar

from cni_plugins import netlink
from cni_plugins.common_links import CommonLinks, perform_unless, taken
from cni_plugins.errors import ConfigurationError, KernelError, NotAttachedError
from cni_plugins.links import Pair, Tuning
from cni_plugins.linux import advertisements, arp, sysctl
from cni_plugins.netlink.client import Request
from cni_plugins.rtnetlink import GONE, Link, LinkEnd, Routes, address_add, link_del, link_set
from cni_plugins.steps import undoing
from cni_plugins.types import InterfaceAddress, NetworkStack, SocketSource

_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


class LinuxLinks(CommonLinks):
    """`links.Links` for Linux."""

    loopback: ClassVar[str] = "lo"
    unshared: ClassVar[frozenset[int]] = frozenset()

    def find(self, name: str) -> Link | None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            return routes.find(name)

    def all(self) -> list[Link]:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            return routes.links()

    def is_bridge(self, link: Link) -> bool:
        """See `links.Links`."""
        return link.kind == "bridge"

    def make_bridge(self, name: str, mac: str, mtu: int) -> None:
        """See `links.Links`: down, until it is prepared. Without an MTU of its own it has the least of its members'."""
        with Routes.of(self._host) as routes:
            try:
                routes.link_add_bridge(name, mac, mtu)
            except KernelError as error:
                if error.errno != errno.EEXIST:
                    raise

    def ignore_advertisements(self, *names: str) -> None:
        """See `links.Links`."""
        advertisements.ignored_by_node(self._host, *names)

    def refused(self, name: str, versions: Collection[int]) -> list[str]:
        """See `links.Links`. The kernel lets IPv6 be switched off, for one interface and for those to come."""
        if 6 not in versions:
            return []
        parameters = _disable_ipv6(name), _disable_ipv6("default")
        try:
            parameter, value = _first_there(self._host, parameters)
        except KernelError as error:
            return [str(error)]
        return [_switched_off("the node", parameter)] if value == "1" else []

    def make_pair(self, pair: Pair, stack: NetworkStack) -> None:
        """See `links.Links`. One request makes both ends, so that a killed process leaves all or nothing.

        A pair that was taken off and waits for its end makes room.
        """
        with Routes.of(self._host) as routes:
            master = _master(routes, pair)
            try:
                try:
                    _create(routes, pair, stack, master)
                except KernelError as error:
                    if error.errno != errno.EEXIST or not self._delete_remnant(routes, pair.host_name):
                        raise
                    _create(routes, pair, stack, master)
            except KernelError as error:
                if error.errno == errno.EEXIST:
                    raise taken(pair) from error
                raise
            with undoing() as undo:
                undo(partial(self.delete, pair.host_name))
                self.ignore_advertisements(pair.host_name)
                routes.perform(*_bring_host_end_up(pair))

    def restore(self, pair: Pair) -> None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            if master := _master(routes, pair):
                routes.link_set(pair.host_name, master=master)
            self.ignore_advertisements(pair.host_name)
            routes.perform(*_bring_host_end_up(pair))

    def take_off(self, name: str) -> Callable[[], object] | None:
        """See `links.Links`. Deleting remains, see `delete`; a pod's end takes the pair along, too."""
        with Routes.of(self._host) as routes:
            link = routes.find(name)
            if link is None or not perform_unless(routes, GONE, link_set(name, up=False, master=0)):
                return None
            return partial(self._delete, link_del(name, link.index))

    def delete(self, name: str) -> bool:
        """See `links.Links`. Waits for a grace period of RCU, about 20 ms, which deletes at one time share."""
        return self._delete(link_del(name))

    def tune(self, stack: SocketSource, name: str, wanted: Tuning) -> Tuning:
        """See `links.Links`. A new MAC is announced, as the kernel does not do it unless `arp_notify` is set."""
        before = super().tune(stack, name, wanted)
        if wanted.mac is not None and wanted.mac != before.mac:
            with Routes.of(stack) as routes:
                addresses = routes.addresses(name)
            arp.announce(stack, name, wanted.mac, addresses)
        return before

    def loopback_up(self, stack: NetworkStack) -> None:
        """See `links.Links`. Linux adds the addresses by itself."""
        with Routes.of(stack) as routes:
            routes.link_set(self.loopback, up=True)

    def enable_forwarding(self, versions: Collection[int]) -> None:
        """See `links.Links`. Netlink tells of it and cannot change it, as a whole and for IPv6."""
        for version in self.not_forwarding(versions):
            if version == 6:
                advertisements.keep_advertised_routes(self._host)
            sysctl.write(self._host, _FORWARDING[version], "1")

    def not_forwarding(self, versions: Collection[int]) -> list[int]:
        """See `links.Links`."""
        if not versions:
            return []
        with Routes.of(self._host) as routes:
            return [version for version in versions if not routes.forwards(version)]

    def _ignore_in_pod(self, stack: SocketSource, name: str) -> None:
        advertisements.ignored_by_pod(stack, name)

    def _before_up(self, routes: Routes, bridge: Link, addresses: Sequence[InterfaceAddress]) -> None:
        """Give a bridge with an IPv6 address the link-local one, too.

        The kernel asks with it for the pods that it forwards to, and would first look for a second or two whether
        somebody else has it.
        """
        if any(address.version == 6 for address in addresses):
            perform_unless(
                routes, errno.EEXIST, address_add(bridge.index, bridge.name, _link_local(bridge.mac))
            )

    @contextmanager
    def _explaining(
        self, stack: SocketSource, name: str, addresses: Sequence[InterfaceAddress]
    ) -> Iterator[None]:
        """Say what is meant where the kernel says that permission is denied because IPv6 is switched off."""
        try:
            yield
        except KernelError as error:
            if error.errno != errno.EACCES or all(address.version != 6 for address in addresses):
                raise
            parameter = _disable_ipv6(name)
            try:
                off = sysctl.read(stack, parameter) == "1"
            except KernelError:  # then that is not known, and the first error is the one to be told
                off = False
            if not off:
                raise
            where = "the node" if stack is self._host else "the pod"
            raise ConfigurationError(_switched_off(where, parameter)) from error

    def _delete(self, request: Request) -> bool:
        with Routes.of(self._host) as routes:
            return perform_unless(routes, GONE, request)

    @staticmethod
    def _delete_remnant(routes: Routes, name: str) -> bool:
        link = routes.find(name)
        if link is None or link.up or link.master:
            return False
        perform_unless(routes, GONE, link_del(name, link.index))
        return True


def _disable_ipv6(name: str) -> str:
    return f"net/ipv6/conf/{name}/disable_ipv6"


def _switched_off(where: str, parameter: str) -> str:
    return (
        f"IPv6 is switched off in {where}, by sysctl {parameter}=1, so no interface can have an IPv6 address there; "
        "set it to 0, there and for all and default, or leave IPv6 ranges out of the network's configuration"
    )


def _first_there(stack: SocketSource, parameters: Sequence[str]) -> tuple[str, str]:
    """Return the first of some parameters that is there, with its value; an empty name and value if none is."""
    for parameter in parameters:
        try:
            return parameter, sysctl.read(stack, parameter)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
    return "", ""


def _link_local(mac: str) -> InterfaceAddress:
    """Return the address that the kernel makes of a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return ip_interface((b"\xfe\x80" + bytes(6) + identifier, 64))


def _master(routes: Routes, pair: Pair) -> int:
    if pair.port is None:
        return 0
    bridge = routes.find(pair.port.bridge)
    if bridge is None:
        raise NotAttachedError(f"bridge {pair.port.bridge} for {pair.host_name} is not there; make it first")
    return bridge.index


def _create(routes: Routes, pair: Pair, stack: NetworkStack, master: int) -> None:
    routes.link_add_veth(
        LinkEnd(pair.host_name, pair.host_mac),
        LinkEnd(pair.pod_name, pair.pod_mac),
        stack.move_target,
        mtu=pair.mtu,
        master=master,
    )


def _bring_host_end_up(pair: Pair) -> list[Request]:
    # A host end needs no IPv6 address but those that it is given, nor the work of making one. The kernel ignores the
    # setting while it creates a link, and would act when the pod's end comes up.
    bare = {"inet6": {"addr_gen_mode": netlink.ADDR_GEN_MODE_NONE}}
    requests = [link_set(pair.host_name, up=True, families=bare)]
    if pair.port is not None and (pair.port.isolated or pair.port.hairpin):
        data = {"isolated": int(pair.port.isolated), "hairpin": int(pair.port.hairpin)}
        requests.insert(0, link_set(pair.host_name, info={"port_kind": "bridge", "port_data": data}))
    return requests
