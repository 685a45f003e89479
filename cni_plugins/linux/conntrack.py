"""The kernel's memory of connections (conntrack), over ctnetlink: what is forgotten, and when that must be.

A connection keeps the translation that it began with. So those of an address that gets another owner have to be
forgotten; and UDP, where a client that never stops sending never begins anew, has to be reminded when a port opens.

Sources: linux/netfilter/nfnetlink_conntrack.h; net/netfilter/nf_conntrack_netlink.c for the filters (Linux 5.8 for
listing, 6.11 for deleting).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from cni_plugins.errors import KernelError
from cni_plugins.linux.nftables import NetfilterHeader
from cni_plugins.linux.standing import Standing
from cni_plugins.nat import HostPort
from cni_plugins.netlink import route
from cni_plugins.netlink.client import NETLINK_NETFILTER, NETLINK_ROUTE, Client, Request
from cni_plugins.netlink.codec import ADDRESS, BE16, BE32, NESTED, U8, U32, Nested, Table
from cni_plugins.netlink.messages import Dialect, Message
from cni_plugins.types import Address, SocketSource

SUBSYSTEM = 1
NEW, GET, DELETE = (SUBSYSTEM << 8 | number for number in range(3))

IP = Table(src4=(1, ADDRESS), dst4=(2, ADDRESS), src6=(3, ADDRESS), dst6=(4, ADDRESS))
PROTO = Table(number=(1, U8), src_port=(2, BE16), dst_port=(3, BE16))
TUPLE = Table(ip=(1, Nested(IP)), proto=(2, Nested(PROTO)), zone=(3, BE16))
FILTER = Table(original=(1, U32), reply=(2, U32))
CONNECTION = Table(
    original=(1, Nested(TUPLE)),
    reply=(2, Nested(TUPLE)),
    status=(3, BE32),
    id=(12, BE32),
    zone=(18, BE16),
    filter=(NESTED | 25, Nested(FILTER)),
)
DIALECT = Dialect(dict.fromkeys((NEW, GET, DELETE), (NetfilterHeader, CONNECTION)))

# CTA_FILTER_F_*: what of a tuple a filter compares.
_BY_SOURCE, _BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5

_MANY = 8
_DIRECTIONS = ("original", "reply")
_Attributes = dict[str | int, Any]


class Connections:
    """The connections of a host's stack. Every method blocks, may be called by several threads, raises KernelError.

    Looking for connections takes the kernel a walk over its whole table, some milliseconds.
    """

    def __init__(self, host: SocketSource) -> None:
        self._host = host
        self._client = Standing(lambda: Client(host, NETLINK_NETFILTER, DIALECT))

    def forget(self, addresses: Collection[Address]) -> None:
        """Forget every connection from or to some addresses."""
        with self._client.lent() as client:
            rest = {
                address
                for address in addresses
                if not (isinstance(address, IPv4Address) and _forget_at_once(client, address))
            }
            for version in {address.version for address in rest}:
                for connection in _list(client, version, {}, f"IPv{version} connections"):
                    for address in rest.intersection(ends(connection)):
                        _delete(client, connection, f"connections of {address}")

    def remind(self, ports: Collection[HostPort]) -> None:
        """Forget UDP connections to host ports that do not go to their pods.

        What only passes through the host on its way to such a port of somebody else is left alone.
        """
        udp = [port for port in ports if port.protocol == "udp"]
        if not udp:
            return
        local: set[Address] | None = None
        with self._client.lent() as client:
            for port, connections in _to_ports(client, udp):
                stale = [connection for connection in connections if not _reaches(connection, port)]
                if stale and local is None:
                    local = _local_addresses(self._host)
                for connection in stale:
                    wanted = _destination(connection)
                    if wanted == port.host_ip or (port.host_ip is None and local and wanted in local):
                        _delete(client, connection, f"UDP connection to {wanted} port {port.host_port}")

    def check(self) -> None:
        """Raise KernelError where the kernel does not let its connections be listed."""
        with self._client.lent() as client:
            _list(client, 4, _udp_to(0), "connections")


def _forget_at_once(client: Client, address: IPv4Address) -> bool:
    """Have the kernel find and forget an address's connections; False if it cannot, which it can since Linux 6.11.

    Not for IPv6: where the kernel compares those addresses in a filter, it takes equal ones for different.
    """
    tuple_: _Attributes = {"ip": {"src4": address}}
    try:
        for direction in _DIRECTIONS:
            attributes = _filtered(direction, tuple_, _BY_SOURCE)
            client.ask(_request(DELETE, 4, attributes, "forget", f"connections of {address}"))
    except KernelError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # it wants a whole connection
            return False
        raise
    return True


def ends(connection: _Attributes) -> set[Address]:
    """Return who talks: whoever began, and whatever was translated, each is the source of one direction."""
    sources = (connection[direction]["ip"] for direction in _DIRECTIONS)
    return {source.get("src4") or source["src6"] for source in sources}


def _to_ports(client: Client, ports: Sequence[HostPort]) -> Iterator[tuple[HostPort, list[_Attributes]]]:
    """Yield the UDP connections to each port: the kernel's walk is for one port, or, if they are many, for all of UDP."""
    for version in (4, 6):
        ours = [port for port in ports if port.pod.version == version]
        if len(ours) > _MANY:
            everything = _list(client, version, _udp_to(None), "UDP connections")
            for port in ours:
                yield port, [one for one in everything if _is_udp_to(one, port.host_port)]
            continue
        for port in ours:
            what = f"UDP connections to port {port.host_port}"
            found = _list(client, version, _udp_to(port.host_port), what)
            yield port, [one for one in found if _is_udp_to(one, port.host_port)]


def _udp_to(port: int | None) -> _Attributes:
    if port is None:
        return _filtered("original", {"proto": {"number": socket.IPPROTO_UDP}}, _BY_PROTOCOL)
    proto = {"number": socket.IPPROTO_UDP, "dst_port": port}
    return _filtered("original", {"proto": proto}, _BY_PROTOCOL | _BY_DESTINATION_PORT)


def _is_udp_to(connection: _Attributes, port: int) -> bool:
    return _has(connection, "original", number=socket.IPPROTO_UDP, dst_port=port)


def _list(client: Client, version: int, attributes: _Attributes, what: str) -> list[_Attributes]:
    found = client.dump(_request(GET, version, attributes, "list", what))
    return [dict(message.attributes) for message in found]


def _reaches(connection: _Attributes, port: HostPort) -> bool:
    answering = connection["reply"]["ip"].get(f"src{port.pod.version}")
    return answering == port.pod.ip and _has(connection, "reply", src_port=port.pod_port)


def _has(connection: _Attributes, direction: str, **proto: int) -> bool:
    found: _Attributes = connection[direction].get("proto", {})
    return all(found.get(name) == value for name, value in proto.items())


def _destination(connection: _Attributes) -> Address | None:
    ip = connection["original"]["ip"]
    found: Address | None = ip.get("dst4") or ip.get("dst6")
    return found


def _delete(client: Client, connection: _Attributes, what: str) -> None:
    identity: _Attributes = {
        name: connection[name] for name in ("original", "id", "zone") if name in connection
    }
    version = 6 if "src6" in connection["original"]["ip"] else 4
    try:
        client.ask(_request(DELETE, version, identity, "forget", what))
    except KernelError as error:
        if error.errno != errno.ENOENT:  # it has ended by itself
            raise


def _filtered(direction: str, tuple_: _Attributes, flags: int) -> _Attributes:
    other = "reply" if direction == "original" else "original"
    return {direction: tuple_, "filter": {direction: flags, other: 0}}


def _request(kind: int, version: int, attributes: _Attributes, operation: str, what: str) -> Request:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return Request(Message(kind, NetfilterHeader(family), attributes), operation, what)


def _local_addresses(host: SocketSource) -> set[Address]:
    message = Message(route.GETADDR, route.AddressHeader())
    with Client(host, NETLINK_ROUTE, route.DIALECT) as client:
        return {
            answer.attributes.get("local") or answer.attributes["address"]
            for answer in client.dump(Request(message, "list", "addresses"))
        }
