"""The nouns: a pod's network stack, and the result types of the CNI specification 1.0.0."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Protocol, TypeAlias

from cni_plugins.errors import ConfigurationError

Address: TypeAlias = IPv4Address | IPv6Address
InterfaceAddress: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

CNI_VERSION = "1.0.0"


class SocketSource(Protocol):
    """A network stack as far as one can reach it from outside: by sockets that were made in it.

    A socket belongs for ever to the stack it was made in, so whoever holds one configures that stack without
    entering it.
    """

    def socket(self, family: int, kind: int, protocol: int, /) -> socket.socket:
        """Return a new socket made inside the stack.

        The arguments are those of socket(2). The caller closes it soon: an open one keeps a jail dying. May raise OSError.
        """


class NetworkStack(SocketSource, Protocol):
    """The network stack of one pod, made by somebody else before it gets here."""

    @property
    def move_target(self) -> int:
        """What the kernel is given to put an interface in: on Linux an open nsfs descriptor, on FreeBSD a jid."""


class OwnStack:
    """The network stack of the calling process: on a node, the host's."""

    def socket(self, family: int, kind: int, protocol: int, /) -> socket.socket:
        """Return a new socket of this process."""
        return socket.socket(family, kind, protocol)


def default_gateway(network: Network) -> Address:
    """Return the address that a bridge takes in a subnet unless told otherwise: the first usable one.

    Raises ConfigurationError for a subnet with no room for a gateway and a pod.
    """
    if network.num_addresses < 2:
        raise ConfigurationError(
            f"subnet {network} has no room for a gateway and a pod; take a shorter prefix"
        )
    # In /31 and /127 both addresses are usable (RFC 3021, RFC 6164); elsewhere the first one is not a host's.
    return network[0] if network.num_addresses == 2 else network[1]


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that an attachment uses. `sandbox` is empty for those on the host."""

    name: str
    mac: str
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class IPConfig:
    """An address, its gateway, and the index in `Result.interfaces` of the interface that has it."""

    address: InterfaceAddress
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route inside the pod."""

    dst: Network
    gw: Address | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What an attachment amounts to: the success result of CNI's ADD."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result in the specification's form, ready for json.dumps; empty fields are left out."""
        ips = [
            {
                "address": str(ip.address),
                **({"gateway": str(ip.gateway)} if ip.gateway else {}),
                **({"interface": ip.interface} if ip.interface is not None else {}),
            }
            for ip in self.ips
        ]
        return {
            "cniVersion": CNI_VERSION,
            "interfaces": [
                {"name": i.name, "mac": i.mac, **({"sandbox": i.sandbox} if i.sandbox else {})}
                for i in self.interfaces
            ],
            "ips": ips,
            "routes": [{"dst": str(r.dst), **({"gw": str(r.gw)} if r.gw else {})} for r in self.routes],
            "dns": self.dns,
        }
