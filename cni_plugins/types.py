"""The nouns: a pod's network stack, and the result types of the CNI specification 1.1.0."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Protocol, TypeAlias

from cni_plugins.errors import ConfigurationError

Address: TypeAlias = IPv4Address | IPv6Address
InterfaceAddress: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

CNI_VERSION = "1.1.0"
OLDEST_VERSION = "0.1.0"
"""What a configuration is written for that does not say it."""
CNI_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that configurations may be written for, and results be told in."""


INTERFACE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
"""What an interface may be called: IFNAMSIZ is 16 with the final zero."""


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

    def sysctl(self, name: str, value: str | None = None, /) -> str:
        """Return a variable of this stack as text; with a value, set it first, and return what it was before.

        Only names below `net.` belong to a stack. On Linux they are written as in sysctl.d(5): where a dot comes
        first, a slash stands for a dot within a part (`net.ipv4.conf.eth0/100.rp_filter`). Raises OSError.
        """


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
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    """Bytes; 0 if it is not known. Results of version 1.1.0 tell it."""


@dataclass(frozen=True, slots=True)
class IPConfig:
    """An address, its gateway, and the index in `Result.interfaces` of the interface that has it."""

    address: InterfaceAddress
    gateway: Address | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route inside the pod. What is None is the kernel's to choose; results of version 1.1.0 tell the last five."""

    dst: Network
    gw: Address | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class DNS:
    """What a pod's resolver is to be told."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the specification's form; empty fields are left out."""
        lists = {"nameservers": self.nameservers, "search": self.search, "options": self.options}
        return {
            **({"domain": self.domain} if self.domain else {}),
            **{name: list(values) for name, values in lists.items() if values},
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What an attachment amounts to: the success result of CNI's ADD. `cni_plugins.results` reads and writes it."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = field(default_factory=DNS)
