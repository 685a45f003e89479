"""What the drivers of `links.Links` do alike: all that route netlink does on both systems."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from cni_plugins.errors import AttachmentExistsError, ConfigurationError, KernelError, NotAttachedError
from cni_plugins.links import Pair, State, Tuning
from cni_plugins.netlink.client import Request
from cni_plugins.rtnetlink import GONE, Link, Routes, address_add, address_del, link_set, route_add
from cni_plugins.types import InterfaceAddress, Route, SocketSource


class CommonLinks:
    """A part of `links.Links`. A system may put in what it has to add, as `_before_up`, and has to say `_ignore_in_pod`."""

    untunable: Mapping[str, str] = {}

    def __init__(self, host: SocketSource) -> None:
        self._host = host

    def prepare_bridge(
        self,
        link: Link,
        addresses: Sequence[InterfaceAddress],
        *,
        mtu: int = 0,
        promiscuous: bool = False,
        replace: bool = False,
    ) -> None:
        """See `links.Links`."""
        with self._explaining(self._host, link.name, addresses), Routes.of(self._host) as routes:
            name = link.name
            if not link.up:
                self._before_up(routes, link, addresses)
            changes: dict[str, object] = {}
            if not link.up:
                changes["up"] = True
            if mtu and link.mtu != mtu:
                changes["mtu"] = mtu
            if promiscuous and not link.promiscuous:
                changes["promiscuous"] = True
            if changes:
                routes.link_set(name, **changes)
            present = routes.addresses_at(link.index) if addresses else []
            for wanted in addresses:
                if has_gateway(present, wanted):
                    continue
                for other in _rivals(wanted, present):
                    if not replace:
                        raise ConfigurationError(
                            f"bridge {name} has the address {other}, so it cannot have {wanted}; "
                            "remove the former, or set forceAddress"
                        )
                    perform_unless(routes, errno.EADDRNOTAVAIL, address_del(link.index, name, other))
                # Another thread may be quicker.
                perform_unless(routes, errno.EEXIST, address_add(link.index, name, wanted))

    def configure(
        self,
        stack: SocketSource,
        name: str,
        addresses: Sequence[InterfaceAddress] = (),
        routes: Sequence[Route] = (),
        *,
        advertised: bool = True,
    ) -> None:
        """See `links.Links`. The kernel works the batch off in order: routes need the addresses, and the link up."""
        with self._explaining(stack, name, addresses), Routes.of(stack) as client:
            link = client.link(name)
            if not advertised:
                self._ignore_in_pod(stack, name)
            client.perform(
                *(address_add(link.index, name, address) for address in addresses),
                link_set(name, up=True),
                *(route_add(link.index, name, route) for route in routes),
            )
        self._announce(stack, link, addresses)

    def refused(self, name: str, versions: Collection[int]) -> list[str]:  # noqa: ARG002 - of those that can tell
        """See `links.Links`."""
        return []

    def state(self, stack: SocketSource, name: str) -> State | None:
        """See `links.Links`."""
        with Routes.of(stack) as routes:
            link = routes.find(name)
            if link is None:
                return None
            try:
                return State(
                    link, tuple(routes.addresses_at(link.index)), tuple(routes.routes_at(link.index))
                )
            except KernelError as error:
                if error.errno in GONE:  # meanwhile
                    return None
                raise

    def glance(self, name: str) -> State | None:
        """See `links.Links`."""
        with Routes.of(self._host) as routes:
            link = routes.find(name)
            return State(link, tuple(routes.addresses_at(link.index)), ()) if link is not None else None

    def tune(self, stack: SocketSource, name: str, wanted: Tuning) -> Tuning:
        """See `links.Links`."""
        with Routes.of(stack) as routes:
            link = routes.find(name)
            if link is None:
                raise NotAttachedError(f"there is no interface {name} to tune; attach it first")
            if changes := wanted.given():
                routes.link_set(name, **changes)
        return Tuning(link.mac, link.mtu, link.promiscuous, link.all_multicast, link.tx_queue_length)

    def states(self, stack: SocketSource) -> dict[str, State]:
        """See `links.Links`."""
        with Routes.of(stack) as routes:
            links = routes.links()
            addresses: dict[int, list[InterfaceAddress]] = {}
            for index, address in routes.all_addresses():
                addresses.setdefault(index, []).append(address)
            over: dict[int, list[Route]] = {}
            for index, route in routes.all_routes():
                over.setdefault(index, []).append(route)
        return {
            link.name: State(link, tuple(addresses.get(link.index, ())), tuple(over.get(link.index, ())))
            for link in links
        }

    def _before_up(self, routes: Routes, bridge: Link, addresses: Sequence[InterfaceAddress]) -> None:
        """Do to a bridge what must be done before it comes up."""

    def _explaining(
        self, stack: SocketSource, name: str, addresses: Sequence[InterfaceAddress]
    ) -> AbstractContextManager[None]:
        """Return what makes a better error of the kernel's, where addresses are added."""
        del stack, name, addresses
        return nullcontext()

    def _ignore_in_pod(self, stack: SocketSource, name: str) -> None:
        """Have an interface of a pod take no router advertisements, unless its stack was made to take some."""
        raise NotImplementedError

    def _announce(self, stack: SocketSource, link: Link, addresses: Sequence[InterfaceAddress]) -> None:
        """Make new addresses known to the neighbours, who may know them as another pod's."""


def has_gateway(present: Iterable[InterfaceAddress], wanted: InterfaceAddress) -> bool:
    """Tell whether an address is there, perhaps as that of a larger subnet."""
    return any(
        each.ip == wanted.ip and each.network.prefixlen <= wanted.network.prefixlen for each in present
    )


def _rivals(wanted: InterfaceAddress, present: Iterable[InterfaceAddress]) -> list[InterfaceAddress]:
    return [each for each in present if each.network == wanted.network and each.ip != wanted.ip]


def perform_unless(routes: Routes, done: int | Iterable[int], request: Request) -> bool:
    """Send a request; return False if the kernel answers that there is nothing to do, by one of these error numbers."""
    try:
        routes.perform(request)
    except KernelError as error:
        if error.errno in ({done} if isinstance(done, int) else done):
            return False
        raise
    return True


def taken(pair: Pair) -> AttachmentExistsError:
    """Return the error for a pair one of whose names is taken."""
    return AttachmentExistsError(
        f"{pair.host_name} exists on the host or {pair.pod_name} in the pod; delete the attachment first"
    )
