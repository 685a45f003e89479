"""CNI's ptp plugin: every pod has an interface whose other end is on the host, alone: all traffic is routed.

    {"type": "ptp", "ipMasq": true, "mtu": 1450, "dns": {"nameservers": ["10.88.0.1"]},
     "ipam": {"type": "host-local", "subnet": "10.88.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}

Settings and results are those of the reference plugin. The host's end has the gateway's address, as has that of every other
pod, and the host a route to each pod's; inside, the gateway is on the link and everything else behind it, neighbours of
one subnet, too. Addresses are given without their subnet, so there is no route to be removed again. `isDefaultGateway`
adds default routes to those of IPAM, as `bridge` has it, and `interfacePrefix` begins the names of host ends.

FreeBSD lets no two interfaces have one IPv6 address. There the hosts' ends are fe80::1 to their pods, and the gateway's
own address is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface, ip_network
from typing import ClassVar

from cni_plugins.links import State
from cni_plugins.pair_names import mac
from cni_plugins.pairs import PairPlugin, alone, gateway_routes, not_forwarding, own_ips
from cni_plugins.plugin import Context, Request
from cni_plugins.rtnetlink import Link
from cni_plugins.settings import Settings
from cni_plugins.steps import Undo
from cni_plugins.types import (
    Address,
    Interface,
    InterfaceAddress,
    IPConfig,
    Network,
    NetworkStack,
    Result,
    Route,
)

_LINK_LOCAL = ip_interface("fe80::1/64")


class PtpPlugin(PairPlugin):
    """Routed pairs."""

    type: ClassVar[str] = "ptp"

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings, context, prefix="ptp", scope="ptp")
        if self._ipam is None:
            raise settings.part("ipam").wrong(
                "type", "a type of plugin: what has no address cannot be routed"
            )
        self._is_gateway = True

    def status(self) -> list[str]:
        """Tell of addresses that no host end can have, too."""
        return self._links.refused(self._names.host(""), self._versions) + super().status()

    def lost(self, requests: Sequence[Request]) -> list[str]:
        """See `Plugin`: forwarding, for a host end is its own pod's."""
        return not_forwarding(
            self._links, {ip.address.version for request in requests for ip in own_ips(request)}
        )

    def _attach(
        self,
        request: Request,
        stack: NetworkStack,
        lease: Result,
        undo: Undo,
    ) -> tuple[Interface, ...]:
        # A bridge of pods may have the gateway, too: a route to one pod comes before that to a subnet.
        self._refuse_shared(
            (self._near(ip.gateway).ip for ip in lease.ips if ip.gateway is not None),
            lambda other: self._links.is_bridge(other) and other.mac == mac("bridge", other.name),
        )
        pair = self._pair(request, mtu=self._mtu)
        self._links.make_pair(pair, stack)
        undo(partial(self._links.delete, pair.host_name))
        self._links.configure(self._context.host, pair.host_name, *self._host_end(lease.ips))
        self._links.configure(stack, pair.pod_name, *self._pod_end(lease), advertised=False)
        self._links.enable_forwarding({ip.address.version for ip in lease.ips})
        link = self._links.find(pair.host_name)
        mtu = link.mtu if link is not None else pair.mtu
        return (
            Interface(pair.host_name, pair.host_mac, mtu=mtu),
            Interface(pair.pod_name, pair.pod_mac, request.attachment.netns, mtu),
        )

    def _near_interfaces(self, host: Link) -> tuple[Interface, ...]:
        return (Interface(host.name, host.mac, mtu=host.mtu),)

    def _restore(self, attached: Sequence[tuple[Request, Link]]) -> None:
        for request, link in attached:
            if not link.up:
                self._links.restore(self._pair(request, mtu=self._mtu))
        states = self._links.states(self._context.host) if attached else {}
        for request, link in attached:
            state = states.get(link.name)
            if state is not None:
                addresses, routes = self._missing(request, state)
                if addresses or routes:
                    self._links.configure(self._context.host, link.name, addresses, routes)

    def _host_faults(self, request: Request, host: Link) -> list[str]:
        state = self._links.state(self._context.host, host.name)
        addresses, routes = self._missing(request, state) if state is not None else ([], [])
        return [
            *(f"{host.name} lacks address {address}" for address in addresses),
            *(f"{host.name} lacks the route to {route.dst}" for route in routes),
        ]

    def _missing(self, request: Request, host: State) -> tuple[list[InterfaceAddress], list[Route]]:
        """Return what a host's end should have and has not."""
        addresses, routes = self._host_end(own_ips(request))
        present = {(route.dst, route.gw) for route in host.routes}
        return (
            [address for address in addresses if address not in host.addresses],
            [route for route in routes if (route.dst, route.gw) not in present],
        )

    def _pod_end(self, result: Result) -> tuple[list[InterfaceAddress], list[Route]]:
        near = {ip.gateway: self._near(ip.gateway).ip for ip in result.ips if ip.gateway is not None}
        asked = [
            replace(route, gw=near.get(route.gw, route.gw)) if route.gw is not None else route
            for route in gateway_routes(result)
        ]
        through = {_only(gateway): None if gateway == by else by for gateway, by in near.items()}
        for ip in result.ips:
            if ip.gateway is not None:
                through.setdefault(ip.address.network, near[ip.gateway])
        for route in asked:
            through.pop(route.dst, None)
        return [alone(ip.address.ip) for ip in result.ips], [
            *(Route(dst, gw) for dst, gw in through.items()),
            *asked,
        ]

    def _host_end(self, ips: Sequence[IPConfig]) -> tuple[list[InterfaceAddress], list[Route]]:
        """Return what the host's end has for the sake of a pod's addresses."""
        addresses = dict.fromkeys(self._near(ip.gateway) for ip in ips if ip.gateway is not None)
        return list(addresses), [Route(_only(ip.address.ip)) for ip in ips]

    def _near(self, gateway: Address) -> InterfaceAddress:
        """Return the address that a host's end has for a gateway."""
        return _LINK_LOCAL if gateway.version in self._links.unshared else alone(gateway)


def _only(address: Address) -> Network:
    return ip_network(address)
