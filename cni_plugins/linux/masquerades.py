"""Masquerading as nftables: a map from pods' addresses to chains, one chain for each set of exceptions.

Pods of one network have the same exceptions, so there is one chain, and a pod is one element per address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network

from cni_plugins.linux import nftables
from cni_plugins.linux.expressions import (
    destination,
    family,
    masquerade,
    source,
    verdict,
    verdict_map,
    within,
)
from cni_plugins.linux.nft_table import Piece
from cni_plugins.linux.nftables import (
    IPV4_ADDRESS,
    IPV6_ADDRESS,
    VERDICT_TYPE,
    Element,
    Set,
    chain_add,
    chain_del,
    chain_flush,
    goto,
    rule_add,
    set_add,
)
from cni_plugins.nat import Masquerade
from cni_plugins.netlink.client import Request
from cni_plugins.types import Network

OWNED = ("sources4", "sources6")
"""The maps whose elements are somebody's."""

_SRCNAT = 100  # nft(8), standard priorities
_MULTICAST: tuple[Network, ...] = (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8"))


@dataclass(frozen=True, slots=True)
class ExceptionChain:
    """The chain that masquerades whatever does not go to one of these networks."""

    exceptions: tuple[Network, ...]

    @classmethod
    def of(cls, exceptions: Sequence[Network]) -> ExceptionChain:
        """Return the chain for exceptions in whatever order."""
        return cls(tuple(sorted(set(exceptions), key=lambda network: (network.version, network))))

    @property
    def name(self) -> str:
        """The chain's name, which depends on nothing but the exceptions."""
        return "except-" + sha256(" ".join(map(str, self.exceptions)).encode()).hexdigest()[:16]

    @property
    def shared(self) -> bool:
        """See `Piece`."""
        return True

    def create(self, table: str) -> list[Request]:
        """See `Piece`."""
        return [
            chain_add(table, self.name),
            chain_flush(table, self.name),
            *(_leave(table, self.name, network) for network in self.exceptions),
            rule_add(table, self.name, masquerade()),
        ]

    def destroy(self, table: str) -> list[Request]:
        """See `Piece`."""
        return [chain_del(table, self.name)]


def skeleton(table: str) -> list[Request]:
    """Return the requests for what is in the table whatever is masqueraded."""
    return [
        set_add(table, Set("sources4", (IPV4_ADDRESS,), (VERDICT_TYPE,))),
        set_add(table, Set("sources6", (IPV6_ADDRESS,), (VERDICT_TYPE,))),
        chain_add(table, "postrouting", nftables.POSTROUTING, _SRCNAT),
        *(_leave(table, "postrouting", network) for network in _MULTICAST),
        *(
            rule_add(table, "postrouting", family(version), verdict_map(f"sources{version}", source(version)))
            for version in (4, 6)
        ),
    ]


def pieces(owner: str, wanted: Masquerade) -> list[Piece]:
    """Return what an owner's masquerading is made of, in the order in which it is made."""
    if not wanted.addresses:
        return []
    chain = ExceptionChain.of(wanted.exceptions)
    return [
        chain,
        *(
            Element(
                f"sources{address.version}",
                address.packed,
                data=goto(chain.name),
                owner=owner,
                what=f"address {address} of {owner}",
            )
            for address in wanted.addresses
        ),
    ]


def translated(piece: Piece) -> bytes:
    """Return the pod's address that a piece has masqueraded, packed; empty if it is no such piece."""
    return piece.key if isinstance(piece, Element) and piece.set in OWNED else b""


def _leave(table: str, chain: str, network: Network) -> Request:
    """Return the rule that lets what goes to a network leave a chain as it is."""
    version = network.version
    return rule_add(
        table, chain, family(version), within(destination(version), network), verdict(nftables.RETURN)
    )
