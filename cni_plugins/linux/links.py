"""Linux: bridges and veth pairs, by route netlink alone."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from cni_plugins import netlink
from cni_plugins.errors import AttachmentExistsError, KernelError, NotAttachedError
from cni_plugins.links import Pair
from cni_plugins.rtnetlink import (
    Link,
    LinkEnd,
    Request,
    Routes,
    address_add,
    link_del,
    link_set,
    route_add_default,
)
from cni_plugins.types import Address, InterfaceAddress, NetworkStack, SocketSource

LOOPBACK = "lo"
GONE = frozenset({errno.ENODEV, errno.ENXIO})


class LinuxLinks:
    """`links.Links` for Linux."""

    def __init__(self, host: SocketSource) -> None:
        self._host = host

    def find(self, name: str) -> Link | None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            return _find(routes, name)

    def is_bridge(self, link: Link) -> bool:
        """See `links.Links`."""
        return link.kind == "bridge"

    def make_bridge(self, name: str, mac: str, mtu: int) -> None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            try:
                routes.link_add_bridge(name, mac, mtu)
            except KernelError as error:
                if error.errno != errno.EEXIST:
                    raise

    def prepare_bridge(self, name: str, mtu: int, addresses: Sequence[InterfaceAddress]) -> None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            link = routes.link(name)
            if link.mtu != mtu or not link.up:
                routes.link_set(name, mtu=mtu, up=True)
            present = set(routes.addresses(name))
            for address in addresses:
                if address in present:
                    continue
                try:
                    routes.perform(address_add(link.index, name, address))
                except KernelError as error:
                    if error.errno != errno.EEXIST:  # another thread was quicker
                        raise

    def all(self) -> list[Link]:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            return routes.links()

    def make_pair(self, pair: Pair, stack: NetworkStack) -> None:
        """See `links.Links`. One request makes both ends, so that a killed process leaves all or nothing."""
        with Routes.of(self._host) as routes:
            bridge = _find(routes, pair.bridge)
            if bridge is None:
                raise NotAttachedError(
                    f"bridge {pair.bridge} for {pair.host_name} is not there; call ensure() first"
                )
            try:
                routes.link_add_veth(
                    LinkEnd(pair.host_name, pair.host_mac),
                    LinkEnd(pair.pod_name, pair.pod_mac),
                    stack.move_target,
                    mtu=pair.mtu,
                    master=bridge.index,
                )
            except KernelError as error:
                if error.errno == errno.EEXIST:
                    raise AttachmentExistsError(
                        f"{pair.host_name} exists on the host or {pair.pod_name} in the pod; delete the attachment first"
                    ) from error
                raise
            try:
                routes.perform(*_bring_host_end_up(pair))
            except BaseException as error:
                try:
                    self.delete(pair.host_name)
                except KernelError as second:
                    error.add_note(f"and the undo failed: {second}")
                raise

    def configure_pod_end(
        self,
        name: str,
        stack: NetworkStack,
        addresses: Sequence[InterfaceAddress],
        gateways: Sequence[Address],
    ) -> None:
        """See `links.Links`. The kernel works the batch off in order: routes need the link up."""
        with Routes.of(stack) as routes:
            index = routes.link_index(name)
            routes.perform(
                *(address_add(index, name, address) for address in addresses),
                link_set(name, up=True),
                *(route_add_default(index, name, gateway) for gateway in gateways),
            )

    def pod_state(
        self, name: str, stack: NetworkStack
    ) -> tuple[Link, list[InterfaceAddress], list[Address]] | None:
        """See `links.Links`."""
        with Routes.of(stack) as routes:
            link = _find(routes, name)
            return (link, routes.addresses(name), routes.default_gateways(name)) if link else None

    def disconnect(self, name: str) -> bool:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            return _unless_gone(link_set(name, up=False, master=0), routes)

    def delete(self, name: str) -> bool:
        """See `links.Links`. Waits for a grace period of RCU, about 20 ms, which deletes at one time share."""
        with Routes.of(self._host) as routes:
            return _unless_gone(link_del(name), routes)

    def loopback_up(self, stack: NetworkStack) -> None:
        """See `links.Links`. Linux adds the addresses by itself."""
        with Routes.of(stack) as routes:
            routes.link_set(LOOPBACK, up=True)


def _find(routes: Routes, name: str) -> Link | None:
    try:
        return routes.link(name)
    except KernelError as error:
        if error.errno in GONE:
            return None
        raise


def _unless_gone(request: Request, routes: Routes) -> bool:
    try:
        routes.perform(request)
    except KernelError as error:
        if error.errno in GONE:
            return False
        raise
    return True


def _bring_host_end_up(pair: Pair) -> list[Request]:
    # A bridge's member needs no IPv6 address of its own, nor the work of making one. The kernel ignores the
    # setting while it creates a link, and would act when the pod's end comes up.
    bare = {"inet6": {"addr_gen_mode": netlink.ADDR_GEN_MODE_NONE}}
    requests = [link_set(pair.host_name, up=True, families=bare)]
    if pair.isolated:
        port = {"port_kind": "bridge", "port_data": {"isolated": 1}}
        requests.insert(0, link_set(pair.host_name, info=port))
    return requests
