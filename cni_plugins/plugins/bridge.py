"""CNI's bridge plugin: every pod has an interface whose other end is in a bridge on the host.

    {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": true, "mtu": 1450,
     "hairpinMode": false, "promiscMode": false, "forceAddress": false, "portIsolation": false,
     "dns": {"nameservers": ["10.88.0.1"]}, "ipam": {"type": "host-local", "subnet": "10.88.0.0/16"}}

Settings and results are those of the reference plugin, whose `vlan`, `vlanTrunk`, `macspoofchk` and
`disableContainerInterface` are refused. `isolated` is another word for `portIsolation`: the bridge lets no frame from one
pod through to another, as the kernel has it. It is no firewall: packets that a pod sends to another one by way of the
gateway are routed there like any others. `interfacePrefix` begins the names of host ends. Without `ipam` the pod is on
the link and has no address. The capability is `mac`.

Differences: IPAM comes first; a bridge may have several addresses, though not two in one subnet; MACs depend on the
attachment alone; and a bridge's MTU never exceeds a member's: with jumbo frames all agree, or none has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from cni_plugins.common_links import has_gateway
from cni_plugins.errors import ForeignInterfaceError
from cni_plugins.links import Port
from cni_plugins.pair_names import checked_mac, mac
from cni_plugins.pairs import (
    PairPlugin,
    gateway_routes,
    not_forwarding,
    own_ips,
    with_prefix,
)
from cni_plugins.plugin import Context, Request
from cni_plugins.rtnetlink import Link
from cni_plugins.settings import Settings
from cni_plugins.steps import Undo
from cni_plugins.types import (
    INTERFACE_NAME,
    Interface,
    InterfaceAddress,
    IPConfig,
    NetworkStack,
    Result,
    Route,
)

_REFUSED = ("vlan", "vlanTrunk", "macspoofchk", "disableContainerInterface")


class BridgePlugin(PairPlugin):
    """A bridge on the host and the pods on it."""

    type: ClassVar[str] = "bridge"

    def __init__(self, settings: Settings, context: Context) -> None:
        self._bridge = settings.text("bridge") or "cni0"
        super().__init__(settings, context, prefix="pod", scope=f"bridge {self._bridge}")
        if not INTERFACE_NAME.fullmatch(self._bridge):
            raise settings.wrong("bridge", "an interface name of at most 15 characters")
        for key in _REFUSED:
            if settings.values.get(key):
                raise settings.wrong(key, "left out: it cannot be done here")
        self._force_address = settings.boolean("forceAddress")
        self._promiscuous = settings.boolean("promiscMode")
        hairpin = settings.boolean("hairpinMode")
        if hairpin and self._promiscuous:
            raise settings.wrong(
                "promiscMode", "false where hairpinMode is true: every frame would come twice"
            )
        isolated = settings.boolean("portIsolation") or settings.boolean("isolated")
        self._port = Port(self._bridge, isolated=isolated, hairpin=hairpin)

    def status(self) -> list[str]:
        """Tell of a foreign interface under the bridge's name, too, and of addresses that the bridge cannot have."""
        link = self._links.find(self._bridge)
        problems = [] if link is None or self._links.is_bridge(link) else [str(self._foreign())]
        if self._is_gateway:
            problems += self._links.refused(self._bridge, self._versions)
        return problems + super().status()

    def lost(self, requests: Sequence[Request]) -> list[str]:
        """See `Plugin`: the bridge, its addresses, and forwarding between them."""
        if not requests:
            return []
        gateways = self._gateways([ip for request in requests for ip in own_ips(request)])
        found = self._links.glance(self._bridge)
        if found is None or not self._links.is_bridge(found.link):
            return [f"bridge {self._bridge} is not there"]
        lost = [] if found.link.up else [f"bridge {self._bridge} is down"]
        lost += [
            f"bridge {self._bridge} lacks address {gateway}"
            for gateway in gateways
            if not has_gateway(found.addresses, gateway)
        ]
        return lost + not_forwarding(self._links, {gateway.version for gateway in gateways})

    def remove_unused(self) -> bool:
        """Delete the bridge if it was made here and has no members; return whether it is gone.

        No verb does it: the reference plugin, too, leaves its bridge where it is.
        """
        link = self._links.find(self._bridge)
        if link is None:
            return True
        ours = self._links.is_bridge(link) and link.mac == mac("bridge", self._bridge)
        if not ours or any(member.master == link.index for member in self._links.all()):
            return False
        return self._links.delete(self._bridge)

    def _attach(
        self,
        request: Request,
        stack: NetworkStack,
        lease: Result,
        undo: Undo,
    ) -> tuple[Interface, ...]:
        wanted_mac = self._wanted_mac(request)
        bridge = self._ensure(self._gateways(lease.ips))
        pair = replace(self._pair(request, mtu=bridge.mtu), port=self._port)
        if wanted_mac:
            pair = replace(pair, pod_mac=wanted_mac)
        self._links.make_pair(pair, stack)
        undo(partial(self._links.delete, pair.host_name))
        addresses, routes = self._pod_end(lease)
        advertised = not addresses or (bridge.mac != mac("bridge", self._bridge) and not _has_six(addresses))
        self._links.configure(stack, pair.pod_name, addresses, routes, advertised=advertised)
        return (
            Interface(bridge.name, bridge.mac, mtu=bridge.mtu),
            Interface(pair.host_name, pair.host_mac, mtu=pair.mtu),
            Interface(pair.pod_name, pair.pod_mac, request.attachment.netns, pair.mtu),
        )

    def _near_interfaces(self, host: Link) -> tuple[Interface, ...]:
        bridge = self._links.find(self._bridge)
        on_host = Interface(host.name, host.mac, mtu=host.mtu)
        return (Interface(bridge.name, bridge.mac, mtu=bridge.mtu), on_host) if bridge else (on_host,)

    def _restore(self, attached: Sequence[tuple[Request, Link]]) -> None:
        if not attached:
            return
        bridge = self._ensure(self._gateways([ip for request, _ in attached for ip in own_ips(request)]))
        for request, link in attached:
            if link.master != bridge.index or not link.up:
                self._links.restore(replace(self._pair(request, mtu=bridge.mtu), port=self._port))

    def _host_faults(self, request: Request, host: Link) -> list[str]:
        bridge = self._links.state(self._context.host, self._bridge)
        faults = []
        if bridge is None or host.master != bridge.link.index:
            faults.append(f"{host.name} is not in bridge {self._bridge}")
        present = bridge.addresses if bridge is not None else ()
        return faults + [
            f"bridge {self._bridge} lacks address {gateway}"
            for gateway in self._gateways(own_ips(request))
            if not has_gateway(present, gateway)
        ]

    def _pod_end(self, result: Result) -> tuple[list[InterfaceAddress], list[Route]]:
        return [ip.address for ip in result.ips], gateway_routes(result)

    def _gateways(self, ips: Sequence[IPConfig]) -> list[InterfaceAddress]:
        """Return the addresses that the bridge has for the sake of some pods'."""
        if not self._is_gateway:
            return []
        wanted = dict.fromkeys(
            (ip.gateway, ip.address.network) for ip in ips
        )  # of all pods it is the same few
        return [with_prefix(gateway, network) for gateway, network in wanted if gateway is not None]

    def _ensure(self, gateways: Sequence[InterfaceAddress]) -> Link:
        """Make the bridge if need be, with at least these addresses, and have the host forward for them."""
        self._refuse_shared((gateway.ip for gateway in gateways), lambda other: other.name == self._bridge)
        link = self._find_or_make()
        if link.mac == mac(
            "bridge", self._bridge
        ):  # what somebody else has made may be his way to his router
            self._ignore_advertisements([link])
        mtu = self._mtu
        if mtu > link.mtu and any(
            member.mtu < mtu for member in self._links.all() if member.master == link.index
        ):
            mtu = 0
        self._links.prepare_bridge(
            link, gateways, mtu=mtu, promiscuous=self._promiscuous, replace=self._force_address
        )
        self._links.enable_forwarding({gateway.version for gateway in gateways})
        return replace(link, mtu=mtu or link.mtu)

    def _find_or_make(self) -> Link:
        link = self._links.find(self._bridge)
        if link is None:
            self._links.make_bridge(self._bridge, mac("bridge", self._bridge), self._mtu)
            link = self._links.find(self._bridge)
        if link is None or not self._links.is_bridge(link):
            raise self._foreign()
        return link

    def _foreign(self) -> ForeignInterfaceError:
        return ForeignInterfaceError(
            f"{self._settings.where}: interface {self._bridge} is no bridge; "
            "rename or remove it, or configure another name for the bridge"
        )

    def _wanted_mac(self, request: Request) -> str:
        """Return the MAC that somebody asks for; as in the reference, the configuration's `args` come first."""
        asked = (
            self._settings.part("args").part("cni").text("mac")
            or request.runtime.mac
            or request.attachment.args.get("MAC", "")
        )
        return checked_mac(asked, self._settings.where) if asked else ""


def _has_six(addresses: Sequence[InterfaceAddress]) -> bool:
    return any(address.version == 6 for address in addresses)
