"""CNI's portmap plugin: ports of the node that lead to a pod.

    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "masqAll": false}

It comes after the plugin that gives the pod its addresses; the first one of each family is where ports lead to. A hostIP
of 0.0.0.0 or :: stands for all of the node's addresses of that family, none for those of both. Whom the pod sees as its
client is told by `snat`: true (the default) has its neighbours, whom it could answer without the node, talk to it as the
node; `masqAll` everybody. The reference plugin's settings that are about iptables are passed over, but for conditions,
which would restrict who gets in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_interface
from typing import ClassVar

from cni_plugins.errors import ConfigurationError, NotAttachedError
from cni_plugins.host_ports import Holder, HostPorts, Port
from cni_plugins.nat import HostPort
from cni_plugins.plugin import Context, Plugin, Request
from cni_plugins.runtime_config import PortMapping
from cni_plugins.settings import Settings
from cni_plugins.steps import all_of
from cni_plugins.types import InterfaceAddress, Result


class PortmapPlugin(Plugin):
    """Host ports over the network's address translation."""

    type: ClassVar[str] = "portmap"

    def __init__(self, settings: Settings, context: Context) -> None:
        self._where = settings.where
        self._context = context
        self._snat = settings.boolean("snat", default=True)
        self._masquerade_all = settings.boolean("masqAll")
        for key in ("conditionsV4", "conditionsV6"):
            if settings.texts(key):
                raise ConfigurationError(
                    f"{settings.where}: {key} is for iptables, which is not used here; remove it, "
                    "and restrict who gets in with a firewall or a NetworkPolicy"
                )
        if settings.text("externalSetMarkChain") and settings.values.get("markMasqBit") is not None:
            raise ConfigurationError(
                f"{settings.where}: externalSetMarkChain and markMasqBit exclude each other; remove both"
            )
        settings.integer("markMasqBit", most=31)

    def add(self, request: Request) -> Result:
        """Claim the ports and open them. Raises ClaimedError, ConfigurationError, LedgerError, KernelError."""
        if not request.previous.interfaces and not request.previous.ips:
            raise ConfigurationError(
                f"{self._where}: nothing comes before it; put it after the plugin that attaches pods"
            )
        ports = self._ports(request)
        if not ports:
            return request.previous
        holder, claims = self._holder(request), HostPorts.of(self._context.ledger)
        claims.claim(holder, [*map(Port.of, ports)])
        try:
            self._context.nat().publish(request.owner, ports)
        except BaseException:
            claims.release(holder)
            raise
        return request.previous

    def delete(self, request: Request) -> None:
        """Close the ports, cut their connections, release them; in this order, so that a successor gets none of it."""
        holder, claims = self._holder(request), HostPorts.of(self._context.ledger)
        if not claims.held(holder):
            return  # nothing was ever opened, and address translation may not even work here
        nat = self._context.nat()
        nat.withdraw(request.owner)
        nat.kill_states([address.ip for address in _pod_addresses(request)])
        claims.release(holder)

    def check(self, request: Request) -> None:
        """Find every port in the attachment's name, and in the kernel what leads from it to the pod."""
        wanted = set(map(Port.of, self._ports(request)))
        missing = wanted - HostPorts.of(self._context.ledger).held(self._holder(request))
        if missing:
            ports = ", ".join(sorted(map(str, missing)))
            raise NotAttachedError(
                f"{self._where}: {request.owner} has not the host port {ports}; delete and add it again"
            )
        if wanted and (lost := self._context.nat().missing(request.owner)):
            raise NotAttachedError(
                f"{self._where}: somebody has removed {', '.join(lost)}; delete {request.owner} and add it again, "
                "or wait for gc, which puts it back"
            )

    def gc(self, requests: Sequence[Request]) -> None:
        """Open the ports of all these that are ours, and release those of nobody.

        Ours have their ports claimed for them where the ledger has lost that.
        """
        wanted = {request.owner: self._ports(request) for request in requests if request.ours}
        self._context.nat().restore_ports({owner: ports for owner, ports in wanted.items() if ports})
        owners = {request.owner for request in requests}
        claims = HostPorts.of(self._context.ledger)
        all_of(
            [
                partial(claims.release_others, self._context.network, owners),
                *(
                    partial(self._claim_found, claims, self._holder(request), wanted[request.owner])
                    for request in requests
                    if request.ours
                ),
            ]
        )

    def status(self) -> list[str]:
        """Return what keeps translations from taking effect, if there are any: most pods have no host ports."""
        return (
            self._context.nat().problems()
            if HostPorts.of(self._context.ledger).any_of(self._context.network)
            else []
        )

    @staticmethod
    def _claim_found(claims: HostPorts, holder: Holder, ports: Sequence[HostPort]) -> None:
        held = claims.held(holder) if ports else set()
        if lacking := [port for port in map(Port.of, ports) if port not in held]:
            claims.claim(holder, lacking, found=True)

    def _holder(self, request: Request) -> Holder:
        return Holder(request.owner, self._context.network)

    def _ports(self, request: Request) -> list[HostPort]:
        pods = _pod_addresses(request)
        return [port for mapping in request.runtime.port_mappings for port in self._ports_of(mapping, pods)]

    def _ports_of(self, mapping: PortMapping, pods: Sequence[InterfaceAddress]) -> list[HostPort]:
        """Return one translation per family that the pod has and the mapping is for."""
        fitting = [pod for pod in pods if mapping.host_ip is None or mapping.host_ip.version == pod.version]
        if not fitting:
            family = f"IPv{mapping.host_ip.version} " if mapping.host_ip else ""
            raise ConfigurationError(
                f"{self._where}: host port {mapping.host_port} {mapping.protocol} leads nowhere, as the pod has no "
                f"{family}address; remove the mapping's host IP, or give the pod such an address"
            )
        host_ip = None if mapping.host_ip is None or mapping.host_ip.is_unspecified else mapping.host_ip
        return [
            HostPort(
                mapping.protocol,
                mapping.host_port,
                # Only the pod itself may hear its answers if nobody else's connections are to be translated.
                pod if self._snat else ip_interface(pod.ip),
                mapping.container_port,
                host_ip,
                masquerade_all=self._snat and self._masquerade_all,
            )
            for pod in fitting
        ]


def _pod_addresses(request: Request) -> list[InterfaceAddress]:
    """Return the pod's first address of each family, of those that its interface has."""
    found: dict[int, InterfaceAddress] = {}
    for ip in request.previous.ips:
        if ip.interface is not None and ip.interface < len(request.previous.interfaces):
            interface = request.previous.interfaces[ip.interface]
            if not interface.sandbox or interface.name != request.attachment.ifname:
                continue
        found.setdefault(ip.address.version, ip.address)
    return list(found.values())
