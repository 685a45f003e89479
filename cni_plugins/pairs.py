"""What `bridge` and `ptp` have in common: every attachment is a pair of interfaces, and has what IPAM gives it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface, ip_network

from cni_plugins.errors import (
    AttachmentBrokenError,
    AttachmentExistsError,
    ConfigurationError,
    NotAttachedError,
)
from cni_plugins.ipam import IpamPlugin
from cni_plugins.links import Links, Pair, State
from cni_plugins.masquerading import Masquerading
from cni_plugins.pair_names import Names
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.results import dns_from_json
from cni_plugins.rtnetlink import Link
from cni_plugins.settings import Settings
from cni_plugins.steps import Undo, all_of, undoing
from cni_plugins.types import (
    DNS,
    Address,
    Interface,
    InterfaceAddress,
    IPConfig,
    Network,
    NetworkStack,
    Result,
    Route,
    default_gateway,
)

LEAST_MTU = {4: 68, 6: 1280}
"""RFC 791, RFC 8200."""
_PAIRS = frozenset({"veth", "epair"})
_DELETIONS = 8  # at one time: they share the kernel's waiting


class PairPlugin(Plugin):
    """An interface plugin whose `add` makes a pair. Of the settings it reads those that the two plugins share."""

    def __init__(self, settings: Settings, context: Context, *, prefix: str, scope: str) -> None:
        self._settings = settings
        self._context = context
        self._links = context.links
        self._names = Names.from_settings(settings, prefix, context.network, scope)
        self._mtu = settings.integer("mtu", most=65535)
        if 0 < self._mtu < LEAST_MTU[4]:
            raise settings.wrong("mtu", f"0, or from {LEAST_MTU[4]} to 65535 bytes")
        self._is_default_gateway = settings.boolean("isDefaultGateway")
        self._is_gateway = settings.boolean("isGateway") or self._is_default_gateway
        try:
            self._dns = dns_from_json(settings.mapping("dns"))
        except (TypeError, ValueError) as error:
            raise settings.wrong("dns", f"what CNI has for it ({error})") from error
        ipam = settings.part("ipam")
        self._ipam = context.delegate(ipam) if ipam.text("type") else None
        self._versions = self._ipam.versions if isinstance(self._ipam, IpamPlugin) else ()
        self._sole: set[Address] = set()
        """Gateways that no other interface of the host has had."""
        self._deaf: set[Link] = set()
        """Links of the host that take no router advertisements; of a bridge, since the last `gc`."""
        self._masquerading = Masquerading(context) if settings.boolean("ipMasq") else None
        self.translates = self._masquerading is not None

    def add(self, request: Request) -> Result:
        """Give the pod an interface, with the addresses and routes that IPAM gives.

        Raises AttachmentExistsError, ConfigurationError for what cannot work, KernelError, and what IPAM raises.
        """
        stack, before = stack_of(request), request.previous
        self._refuse_second(request)
        with undoing() as undo:
            lease = self._lease(request)
            if self._ipam is not None:
                undo(partial(self._ipam.delete, request))
            interfaces = before.interfaces + self._attach(request, stack, lease, undo)
            ips = tuple(replace(ip, interface=len(interfaces) - 1) for ip in lease.ips)
            result = Result(interfaces, before.ips + ips, before.routes + lease.routes, lease.dns)
            if self._masquerading is not None:
                undo(partial(self._masquerading.delete, request))
                self._masquerading.add(request, result)
        return result

    def delete(self, request: Request) -> None:
        """Take the pod off the network, now; then its addresses are free. What takes time is done later."""
        self._take_off(self._names.host(request.owner))
        if self._masquerading is not None:
            self._masquerading.delete(request)
        if self._ipam is not None:
            self._ipam.delete(request)

    def check(self, request: Request) -> None:
        """Compare both ends, addresses and routes with the result, as far as that is known."""
        name, ifname = self._names.host(request.owner), request.attachment.ifname
        host = self._links.find(name)
        pod = self._links.state(request.stack, ifname) if request.stack is not None else None
        if host is None or pod is None:
            missing = f"{name} on the host" if host is None else f"{ifname} in the pod"
            raise NotAttachedError(
                f"attachment {request.owner}: no interface {missing}; delete and add it again"
            )
        faults = [
            *_link_faults(host, _told(request, name)),
            *_link_faults(pod.link, _told(request, ifname)),
            *self._host_faults(request, host),
            *self._pod_faults(request, pod),
        ]
        if faults:
            raise AttachmentBrokenError(
                f"attachment {request.owner}: {'; '.join(faults)}; delete and add it again"
            )
        if self._ipam is not None:
            self._ipam.check(request)

    def gc(self, requests: Sequence[Request]) -> None:
        """Delete host ends that nobody owns, put back what ours that are alive lack, then do the same for addresses.

        How those of another configuration are attached, that one knows. The rest is done in spite of a failure, which is
        raised at the end.
        """
        there = {link.name: link for link in self._links.all() if self._names.has(link.name)}
        self._deaf.intersection_update(there.values())
        wanted = {self._names.host(request.owner): request for request in requests}
        ours = {name for name, request in wanted.items() if request.ours}
        parts = [part for part in (self._masquerading, self._ipam) if part is not None]
        all_of(
            [
                partial(self._delete, there.keys() - wanted.keys()),
                partial(self._ignore_advertisements, [there[name] for name in there.keys() & ours]),
                partial(self._restore, [(wanted[name], there[name]) for name in there.keys() & ours]),
                *(partial(part.gc, requests) for part in parts),
            ]
        )

    def adopt(self, request: Request, pod: State) -> Result:
        """See `Plugin`. The previous result, if the pod's host end is none that this configuration makes."""
        before, host = request.previous, self._links.find(self._names.host(request.owner))
        if host is None:
            return before
        if not host.up and not host.master:
            raise NotAttachedError(
                f"attachment {request.owner}: {host.name} was being taken off the network; delete the attachment"
            )
        lease = self._found(request, pod)
        far = Interface(pod.link.name, pod.link.mac, request.attachment.netns, pod.link.mtu)
        interfaces = (*before.interfaces, *self._near_interfaces(host), far)
        ips = tuple(replace(ip, interface=len(interfaces) - 1) for ip in lease.ips)
        return Result(interfaces, before.ips + ips, before.routes + lease.routes, lease.dns)

    def status(self) -> list[str]:
        """What the parts say."""
        return [problem for part in (self._ipam, self._masquerading) if part for problem in part.status()]

    @abc.abstractmethod
    def _attach(
        self,
        request: Request,
        stack: NetworkStack,
        lease: Result,
        undo: Undo,
    ) -> tuple[Interface, ...]:
        """Make a pair with what IPAM has given; return the interfaces for the result, the pod's end last."""

    @abc.abstractmethod
    def _near_interfaces(self, host: Link) -> tuple[Interface, ...]:
        """Return what a result tells of the host for a pod with this host end."""

    @abc.abstractmethod
    def _restore(self, attached: Sequence[tuple[Request, Link]]) -> None:
        """Put back what these attachments, whose host ends are there, lack on the host."""

    @abc.abstractmethod
    def _host_faults(self, request: Request, host: Link) -> list[str]:
        """Return what is wrong on the host with an attachment."""

    @abc.abstractmethod
    def _pod_end(self, result: Result) -> tuple[list[InterfaceAddress], list[Route]]:
        """Return what the pod's end has of a result's addresses and routes."""

    def _pod_faults(self, request: Request, pod: State) -> list[str]:
        ours = own_ips(request)
        addresses, routes = self._pod_end(replace(request.previous, ips=ours))
        name = pod.link.name
        return [
            f"{name} lacks address {address}" for address in addresses if address not in pod.addresses
        ] + [
            f"{name} lacks the route to {route.dst}" + (f" via {route.gw}" if route.gw else "")
            for route in routes
            if not any(_is_as_wanted(route, present) for present in pod.routes)
        ]

    def _ignore_advertisements(self, links: Collection[Link]) -> None:
        """No pod becomes the node's router: not over what an earlier release has made, or somebody has changed, either."""
        fresh = [link for link in links if link not in self._deaf]
        if fresh:
            self._links.ignore_advertisements(*(link.name for link in fresh))
            self._deaf.update(fresh)

    def _refuse_shared(self, gateways: Iterable[Address], may_share: Callable[[Link], bool]) -> None:
        """Raise ConfigurationError for a gateway's address that another interface has; it is looked at once.

        The host ends of routed pods have theirs alone, and take nothing from a bridge.
        """
        fresh = {gateway for gateway in gateways if not gateway.is_link_local} - self._sole
        if not fresh:
            return
        for state in self._links.states(self._context.host).values():
            for address in state.addresses:
                pod_s = address == alone(address.ip) and state.link.kind in _PAIRS
                if address.ip in fresh and not pod_s and not may_share(state.link):
                    raise ConfigurationError(
                        f"{self._settings.where}: the gateway {address.ip} is the host's own address already, {address} "
                        f"of interface {state.link.name}; give the pods another subnet or gateway, or remove it there"
                    )
        self._sole |= fresh

    def _refuse_second(self, request: Request) -> None:
        """Look before anything is done whose undoing would harm what is there."""
        link = self._links.find(self._names.host(request.owner))
        if link is not None and (link.up or link.master):
            raise AttachmentExistsError(
                f"attachment {request.owner}: {link.name} exists on the host; delete the attachment first"
            )

    def _lease(self, request: Request) -> Result:
        """Return what IPAM gives, with default routes if they are wanted, and the configuration's DNS if it has one."""
        if self._ipam is None:
            return Result(dns=self._dns)
        lease = self._ipam.add(replace(request, previous=Result()))
        try:
            return self._completed(lease)
        except BaseException:
            self._ipam.delete(request)
            raise

    def _found(self, request: Request, pod: State) -> Result:
        """Return what `_lease` has given for a pod with these addresses; its real gateways come before the configured."""
        addresses = [address for address in pod.addresses if not address.is_link_local]
        lease = (
            self._ipam.found(request, addresses)
            if isinstance(self._ipam, IpamPlugin)
            else Result(ips=tuple(map(IPConfig, addresses)))
        )
        gateways = [pod.gateway(address) for address in addresses]
        ips = tuple(
            replace(ip, gateway=ip.gateway if gateway is None or gateway.is_link_local else gateway)
            for ip, gateway in zip(lease.ips, gateways, strict=True)
        )
        try:
            return self._completed(replace(lease, ips=ips))
        except ConfigurationError:  # that is of another configuration, which nobody knows any more
            return replace(lease, ips=ips)

    def _completed(self, lease: Result) -> Result:
        where = self._settings.where
        if not lease.ips:
            raise ConfigurationError(f"{where}: ipam gives no address; give it ranges or addresses")
        ips = tuple(
            replace(ip, gateway=default_gateway(ip.address.network))
            if self._is_gateway and ip.gateway is None
            else ip
            for ip in lease.ips
        )
        for ip in ips:
            if ip.gateway == ip.address.ip:
                raise ConfigurationError(
                    f"{where}: {ip.address} is the gateway's own address; keep it out of ipam's range"
                )
            if self._mtu and self._mtu < LEAST_MTU[ip.address.version]:
                raise ConfigurationError(
                    f"{where}: mtu {self._mtu} is too small for {ip.address}; IPv6 needs {LEAST_MTU[6]} bytes"
                )
        routes = list(lease.routes)
        if self._is_default_gateway:
            for ip in ips:
                anywhere = default_route(ip.address)
                if not any(route.dst == anywhere and route.gw for route in routes):
                    routes.append(Route(anywhere, ip.gateway))
        return replace(
            lease, ips=ips, routes=tuple(routes), dns=self._dns if self._dns != DNS() else lease.dns
        )

    def _pair(self, request: Request, *, mtu: int) -> Pair:
        owner = request.owner
        return Pair(
            host_name=self._names.host(owner),
            host_mac=self._names.mac("host", owner),
            pod_name=request.attachment.ifname,
            pod_mac=self._names.mac("pod", owner),
            mtu=mtu,
        )

    def _delete(self, names: Collection[str]) -> None:
        with ThreadPoolExecutor(_DELETIONS) as threads:
            all_of([threads.submit(self._links.delete, name).result for name in names])

    def _take_off(self, name: str) -> None:
        rest = self._links.take_off(name)
        if rest is not None:
            self._context.later(f"deleting interface {name}", rest)


def stack_of(request: Request) -> NetworkStack:
    """Return the pod's stack, which `add` cannot do without."""
    if request.stack is None:
        raise ConfigurationError(f"attachment {request.owner}: there is no network stack to add it to")
    return request.stack


def own_ips(request: Request) -> tuple[IPConfig, ...]:
    """Return the addresses of the previous result that are the attachment's interface's."""
    interfaces = request.previous.interfaces
    return tuple(
        ip
        for ip in request.previous.ips
        if ip.interface is None
        or ip.interface >= len(interfaces)
        or interfaces[ip.interface].name == request.attachment.ifname
    )


def not_forwarding(links: Links, versions: Collection[int]) -> list[str]:
    """Return, in words, what of the host's forwarding is off."""
    return [f"the node does not forward IPv{version}" for version in sorted(links.not_forwarding(versions))]


def gateway_routes(result: Result) -> list[Route]:
    """Return a result's routes as the kernel is given them: one without a gateway leads to the first of its family."""
    first: dict[int, Address] = {}
    for ip in result.ips:
        if ip.gateway is not None:
            first.setdefault(ip.gateway.version, ip.gateway)
    return [replace(route, gw=route.gw or first.get(route.dst.version)) for route in result.routes]


def with_prefix(address: Address, network: Network) -> InterfaceAddress:
    """Return an address with the prefix length of its subnet."""
    return ip_interface((address, network.prefixlen))


def alone(address: Address) -> InterfaceAddress:
    """Return an address with the prefix of one that has no neighbours."""
    return ip_interface((address, address.max_prefixlen))


def default_route(address: InterfaceAddress) -> Network:
    """Return the destination of the default route of an address's family."""
    return ip_network("::/0" if address.version == 6 else "0.0.0.0/0")


def _told(request: Request, name: str) -> Interface | None:
    # The last one: a bridge may be called like the interface in the pod.
    return next((each for each in reversed(request.previous.interfaces) if each.name == name), None)


def _link_faults(link: Link, wanted: Interface | None) -> list[str]:
    faults = []
    if not link.up:
        faults.append(f"{link.name} is down")
    if wanted is not None and wanted.mac and link.mac != wanted.mac:
        faults.append(f"{link.name} has the MAC {link.mac}, not {wanted.mac}")
    if wanted is not None and wanted.mtu and link.mtu != wanted.mtu:
        faults.append(f"{link.name} has the MTU {link.mtu}, not {wanted.mtu}")
    return faults


def _is_as_wanted(wanted: Route, present: Route) -> bool:
    return (wanted.dst, wanted.gw) == (present.dst, present.gw) and all(
        getattr(wanted, name) in (None, getattr(present, name))
        for name in ("mtu", "advmss", "priority", "table")
    )
