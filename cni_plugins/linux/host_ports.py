"""Host ports as nftables: rules that never change, and two elements of maps for each port.

A connection to a port of the node is sent on by one lookup in a map, keyed by protocol and port, or with the address
before them for ports that are open on one address only. When it leaves the node for the pod, a second map, keyed by the
pod and by the port that the client wanted, tells that it came this way, and which clients the pod's answers would reach
without the node between: their connections come from the node.

127.0.0.1 is sent on as well, for the node itself, since the pod's interface is made to route it (`localnet.py`). ::1
cannot be: IPv6 has no such setting and never lets it out of the loopback interface; so it is left to whoever listens
there. Nobody else gets to either: a translation would come before the kernel's check for addresses that cannot arrive.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from cni_plugins.errors import ConfigurationError
from cni_plugins.linux import nftables
from cni_plugins.linux.expressions import (
    destination,
    destination_port,
    dnat,
    family,
    in_set,
    incoming_interface,
    mapped,
    masquerade,
    original_port,
    protocol,
    protocol_is,
    source,
    to_this_host,
    translated,
    verdict,
    verdict_map,
    within,
)
from cni_plugins.linux.nft_table import Piece
from cni_plugins.linux.nftables import (
    INTERFACE_NAME,
    IPV4_ADDRESS,
    IPV6_ADDRESS,
    PORT,
    PROTOCOL,
    VERDICT_TYPE,
    Element,
    Set,
    chain_add,
    chain_del,
    chain_flush,
    goto,
    join,
    jump,
    rule_add,
    set_add,
)
from cni_plugins.nat import PROTOCOLS, HostPort
from cni_plugins.netlink.client import Request
from cni_plugins.types import InterfaceAddress, Network

LOCALNET = "localnet"
"""The set of the interfaces that route 127.0.0.0/8 for us."""

WAYS_IN = ("any4", "address4", "any6", "address6")
"""The maps from host ports to pods."""

OWNED = (*WAYS_IN, "published4", "published6")
"""The maps whose elements are somebody's."""

_PUBLISHED = {"published4": 4, "published6": 16}
"""The maps whose keys begin with a pod's address, and how long that is."""

_FROM_ANYWHERE = "from-anywhere"

_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_LOOPBACK4, _LOOPBACK6 = IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")
_RAW, _DSTNAT, _OUTPUT_DSTNAT, _SRCNAT = -300, -100, -100, 100  # nft(8), standard priorities
_ADDRESS_TYPES = {4: IPV4_ADDRESS, 6: IPV6_ADDRESS}


@dataclass(frozen=True, slots=True)
class NeighbourChain:
    """The chain that masquerades what comes from a pod's own network, or from the node's loopback."""

    network: Network

    @property
    def name(self) -> str:
        """The chain's name; nft(8) takes no colon there."""
        return "from-" + str(self.network).replace(":", "-")

    @property
    def shared(self) -> bool:
        """See `Piece`."""
        return True

    def create(self, table: str) -> list[Request]:
        """See `Piece`."""
        sources: list[Network] = [self.network] if self.network.version == 6 else [self.network, _LOOPBACK4]
        return [
            chain_add(table, self.name),
            chain_flush(table, self.name),
            *(
                rule_add(
                    table,
                    self.name,
                    family(clients.version),
                    within(source(clients.version), clients),
                    masquerade(),
                )
                for clients in sources
            ),
        ]

    def destroy(self, table: str) -> list[Request]:
        """See `Piece`."""
        return [chain_del(table, self.name)]


def skeleton(table: str) -> list[Request]:
    """Return the requests for what is in the table whatever ports are open."""
    return [
        set_add(table, Set(LOCALNET, (INTERFACE_NAME,))),
        *(request for version in (4, 6) for request in _maps(table, version)),
        chain_add(table, "hostports"),
        chain_add(table, _FROM_ANYWHERE),
        chain_add(table, "guard", nftables.PREROUTING, _RAW, "filter"),
        chain_add(table, "prerouting", nftables.PREROUTING, _DSTNAT),
        chain_add(table, "output", nftables.OUTPUT, _OUTPUT_DSTNAT),
        chain_add(table, "postrouting", nftables.POSTROUTING, _SRCNAT),
        *_guard(table),
        # What arrives for a loopback address was sent by somebody else; untranslated, the kernel takes it for a Martian.
        *(_leave(table, "prerouting", loopback) for loopback in (_LOOPBACK4, _LOOPBACK6)),
        rule_add(table, "prerouting", verdict(jump("hostports"))),
        _leave(table, "output", _LOOPBACK6),
        rule_add(table, "output", verdict(jump("hostports"))),
        rule_add(table, _FROM_ANYWHERE, masquerade()),
        *(request for version in (4, 6) for request in _rules(table, version)),
    ]


def pieces(owner: str, ports: Sequence[HostPort], interfaces: Iterable[str]) -> list[Piece]:
    """Return what an owner's ports are made of. `interfaces` are those that route 127.0.0.0/8 to its pod.

    Raises ConfigurationError for ports that cannot be.
    """
    for port in ports:
        _check(owner, port)
    ways_in = list(dict.fromkeys(way_in(owner, port) for port in ports))
    _refuse_doubles(owner, ways_in)
    return [
        *dict.fromkeys(NeighbourChain(port.pod.network) for port in ports),
        *ways_in,
        *_ways_out(owner, ports),
        *(
            Element(LOCALNET, os.fsencode(name).ljust(16, b"\0"), what=f"interface {name}")
            for name in interfaces
        ),
    ]


def way_in(owner: str, port: HostPort) -> Element:
    """Return the element that leads from a host port to its pod."""
    key = [bytes([_NUMBERS[port.protocol]]), _be16(port.host_port)]
    if port.host_ip is not None:
        key.insert(0, port.host_ip.packed)
    return Element(
        f"any{port.pod.version}" if port.host_ip is None else f"address{port.pod.version}",
        join(*key),
        data=join(port.pod.ip.packed, _be16(port.pod_port)),
        owner=owner,
        what=f"{words(port)} of {owner}",
    )


def leads_to(piece: Piece) -> bytes:
    """Return the pod's address, packed, to which a piece is part of a port's way; empty if it is no such piece."""
    length = _PUBLISHED.get(piece.set, 0) if isinstance(piece, Element) else 0
    return piece.key[:length] if isinstance(piece, Element) else b""


def words(port: HostPort) -> str:
    """Return a host port as people write it."""
    where = "" if port.host_ip is None else f" on {port.host_ip}"
    return f"host port {port.host_port}/{port.protocol}{where}"


def _maps(table: str, version: int) -> list[Request]:
    address = _ADDRESS_TYPES[version]
    return [
        set_add(table, Set(f"any{version}", (PROTOCOL, PORT), (address, PORT))),
        set_add(table, Set(f"address{version}", (address, PROTOCOL, PORT), (address, PORT))),
        set_add(table, Set(f"published{version}", (address, PROTOCOL, PORT), (VERDICT_TYPE,))),
    ]


def _guard(table: str) -> list[Request]:
    """Nobody on the other side of an interface that routes 127.0.0.0/8 gets to the node's loopback by it."""
    arriving = (in_set(LOCALNET, incoming_interface()), family(4))
    return [
        rule_add(table, "guard", *arriving, within(field, _LOOPBACK4), verdict(nftables.DROP))
        for field in (destination(4), source(4))
    ]


def _leave(table: str, chain: str, loopback: Network) -> Request:
    """Return the rule that ends a chain for what goes to a loopback address."""
    version = loopback.version
    return rule_add(
        table, chain, family(version), within(destination(version), loopback), verdict(nftables.RETURN)
    )


def _rules(table: str, version: int) -> list[Request]:
    wanted = (protocol(), destination_port())
    to_address = mapped(f"address{version}", destination(version), *wanted)
    to_any = [*to_this_host(), *mapped(f"any{version}", *wanted)]
    way_out = verdict_map(f"published{version}", destination(version), protocol(), original_port())
    return [
        rule_add(table, "hostports", family(version), to_address, dnat(version)),
        rule_add(table, "hostports", family(version), to_any, dnat(version)),
        # nft(8) could list one rule for all protocols, but not load it: it wants to know whose ports it compares.
        *(
            rule_add(table, "postrouting", translated(), protocol_is(number), family(version), way_out)
            for number in _NUMBERS.values()
        ),
    ]


def _ways_out(owner: str, ports: Sequence[HostPort]) -> list[Element]:
    # Two addresses of the node may lead to one pod by the same port; what leaves for the pod is alike then.
    alike: dict[tuple[InterfaceAddress, str, int], bool] = {}
    for port in ports:
        key = port.pod, port.protocol, port.host_port
        alike[key] = alike.get(key, False) or port.masquerade_all
    return [
        Element(
            f"published{pod.version}",
            join(pod.ip.packed, bytes([_NUMBERS[protocol_]]), _be16(number)),
            data=goto(_FROM_ANYWHERE if masquerade_all else NeighbourChain(pod.network).name),
            owner=owner,
            what=f"the way of port {number}/{protocol_} to {pod.ip} of {owner}",
        )
        for (pod, protocol_, number), masquerade_all in alike.items()
    ]


def _refuse_doubles(owner: str, ways_in: Sequence[Element]) -> None:
    seen = set()
    for way in ways_in:
        if (way.set, way.key) in seen:
            raise ConfigurationError(f"{way.what} leads to two ports of {owner}'s; map it once")
        seen.add((way.set, way.key))


def _check(owner: str, port: HostPort) -> None:
    if port.protocol not in PROTOCOLS:
        raise ConfigurationError(
            f"host port of {owner}: protocol {port.protocol!r} is none of {', '.join(PROTOCOLS)}"
        )
    for number in (port.host_port, port.pod_port):
        if not 1 <= number <= 65535:
            raise ConfigurationError(f"{words(port)} of {owner}: port {number} is not from 1 to 65535")
    if port.host_ip is None:
        return
    if port.host_ip.version != port.pod.version:
        raise ConfigurationError(
            f"{words(port)} of {owner}: the pod's address {port.pod.ip} is of another family; "
            "give a hostIP of that family, or the pod an address of this one"
        )
    if port.host_ip.is_unspecified:
        raise ConfigurationError(
            f"{words(port)} of {owner}: give no hostIP for every address, or one that a packet can be sent to"
        )


def _be16(number: int) -> bytes:
    return number.to_bytes(2, "big")
