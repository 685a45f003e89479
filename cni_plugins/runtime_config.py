"""Capability arguments: what a runtime knows of one pod and a configuration cannot.

A plugin gets of them what its configuration declares under `capabilities`. Names and forms are those of the CNI
conventions ("Dynamic Plugin specific fields").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any

from cni_plugins.errors import ConfigurationError
from cni_plugins.nat import PROTOCOLS
from cni_plugins.results import dns_from_json
from cni_plugins.types import DNS, Address, InterfaceAddress


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node that is to lead to a port of the pod.

    `host_ip` None is every address of the node, 0.0.0.0 every one of IPv4, :: every one of IPv6. Making one with an
    address that no client could ever reach a pod by raises ConfigurationError.
    """

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: Address | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a host port's address."""
        if self.host_ip is not None and (reason := _unreachable(self.host_ip)):
            raise ConfigurationError(
                f"hostIP {self.host_ip} of host port {self.host_port} {self.protocol}: {reason}"
            )


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Limits from the pod's view: ingress is what it receives. Rates are bits per second, bursts bits; 0 is no limit."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The capability arguments of one attachment."""

    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    ips: tuple[InterfaceAddress | Address, ...] = ()
    """Addresses that the pod is to have; one without a prefix gets its subnet's."""
    mac: str = ""
    dns: DNS | None = None
    ip_ranges: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    """Range sets for host-local, in its own form, instead of those of its configuration."""

    def only(self, capabilities: Collection[str]) -> RuntimeConfig:
        """Return what a plugin with these capabilities is given."""
        return RuntimeConfig(
            **{
                field.name: getattr(self, field.name)
                for field in fields(self)
                if _KEYS[field.name] in capabilities
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the conventions' form, as `runtimeConfig` of a configuration has it; what is empty is left out."""
        told: dict[str, Any] = {
            "portMappings": [_port_to_json(port) for port in self.port_mappings],
            "bandwidth": _bandwidth_to_json(self.bandwidth) if self.bandwidth else None,
            "ips": [str(ip) for ip in self.ips],
            "mac": self.mac,
            "dns": _dns_to_json(self.dns) if self.dns else None,
            "ipRanges": [[dict(one) for one in each] for each in self.ip_ranges],
        }
        return {key: value for key, value in told.items() if value}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> RuntimeConfig:
        """Read the conventions' form; keys that no plugin of ours knows are passed over. Raises ConfigurationError."""
        readers: dict[str, Callable[[Any], Any]] = {
            "port_mappings": lambda value: tuple(map(_port_from_json, value)),
            "bandwidth": _bandwidth_from_json,
            "ips": lambda value: tuple(map(_ip_from_json, value)),
            "mac": str,
            "dns": dns_from_json,
            "ip_ranges": lambda value: tuple(tuple(map(dict, each)) for each in value),
        }
        found = {}
        for name, read in readers.items():
            key = _KEYS[name]
            if told.get(key):
                try:
                    found[name] = read(told[key])
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise ConfigurationError(f"capability argument {key}: {told[key]!r}: {error}") from error
        return cls(**found)


_KEYS = {
    "port_mappings": "portMappings",
    "bandwidth": "bandwidth",
    "ips": "ips",
    "mac": "mac",
    "dns": "dns",
    "ip_ranges": "ipRanges",
}
_MOST_LIMIT = (1 << 63) - 1
_BROADCAST = IPv4Address("255.255.255.255")
CAPABILITIES = frozenset(_KEYS.values())
"""Every capability that has an argument here."""


def _unreachable(address: Address) -> str:
    """Return why no client of an address can get to a pod, and what to do; empty if it can."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "it is on one interface only, which cannot be told apart; give it without the %"
        if address.ipv4_mapped is not None:
            return f"no packet has such an address; give {address.ipv4_mapped}"
        if address.is_loopback:
            return "the kernel keeps packets to it on the loopback interface; give 127.0.0.1, or none"
    if address.is_multicast or address == _BROADCAST:
        return "it stands for more than one host; give an address of this node, or none"
    return ""


def _port_to_json(port: PortMapping) -> dict[str, Any]:
    return {
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol,
        **({"hostIP": str(port.host_ip)} if port.host_ip else {}),
    }


def _port_from_json(told: Mapping[str, Any]) -> PortMapping:
    protocol = str(told.get("protocol") or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    host_port, container_port = int(told["hostPort"]), int(told["containerPort"])
    if not (0 < host_port < 1 << 16 and 0 < container_port < 1 << 16):
        raise ValueError(f"ports {host_port} and {container_port} are not both from 1 to 65535")
    host_ip = ip_address(told["hostIP"]) if told.get("hostIP") else None
    return PortMapping(host_port, container_port, protocol, host_ip)


def _bandwidth_to_json(limits: Bandwidth) -> dict[str, int]:
    told = {
        "ingressRate": limits.ingress_rate,
        "ingressBurst": limits.ingress_burst,
        "egressRate": limits.egress_rate,
        "egressBurst": limits.egress_burst,
    }
    return {key: value for key, value in told.items() if value}


def _bandwidth_from_json(told: Mapping[str, Any]) -> Bandwidth:
    keys = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
    values = [int(told.get(key) or 0) for key in keys]
    if min(values) < 0 or max(values) > _MOST_LIMIT:
        raise ValueError(f"a limit is not from 0 to {_MOST_LIMIT}")
    return Bandwidth(*values)


def _ip_from_json(told: str) -> InterfaceAddress | Address:
    return ip_interface(told) if "/" in told else ip_address(told)


def _dns_to_json(dns: DNS) -> dict[str, Any]:
    told = dns.to_json()
    renamed = {"nameservers": "servers", "search": "searches"}
    return {renamed.get(key, key): value for key, value in told.items()}
