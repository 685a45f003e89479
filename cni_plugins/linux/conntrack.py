"""The kernel's memory of connections (conntrack), over ctnetlink: what is forgotten, and when that must be.

A connection keeps the translation that it began with. So those of an address that gets another owner have to be
forgotten; and UDP, where a client that never stops sending never begins anew, has to be reminded when a port opens.

A busy node has some hundred thousand of them. What the kernel cannot be asked to choose is chosen from its bytes, before
they are decoded.

Sources: linux/netfilter/nfnetlink_conntrack.h; net/netfilter/nf_conntrack_netlink.c for the filters (Linux 5.8 for
listing, 6.11 for deleting).
"""

from __future__ import annotations

import errno
import socket
import struct
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
from cni_plugins.netlink.messages import Answer, Dialect, Message
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
_FAMILIES = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER_BYTES = 16  # of struct nlmsghdr, whose first members are the message's length and type
_LENGTH_AND_TYPE = struct.Struct("=IH")
_FIRST_TYPE = 16  # NLMSG_MIN_TYPE: below are those of netlink itself
_Attributes = dict[str | int, Any]


class Mentioning(Dialect):
    """The dialect, in which the kernel's messages without any of certain bytes are passed over."""

    def __init__(self, sought: Collection[bytes]) -> None:
        super().__init__(DIALECT.messages)
        self._sought = sought

    def decode(self, datagram: bytes) -> list[Answer]:
        """See `Dialect`."""
        return super().decode(b"".join(self._chosen(datagram)))

    def _chosen(self, datagram: bytes) -> Iterator[bytes]:
        here = [one for one in self._sought if one in datagram]
        offset, length_of_all = 0, len(datagram)
        while length_of_all - offset >= _HEADER_BYTES:
            length, kind = _LENGTH_AND_TYPE.unpack_from(datagram, offset)
            if length < _HEADER_BYTES:
                break
            end = offset + length + -length % 4
            if kind < _FIRST_TYPE or (here and any(datagram.find(one, offset, end) >= 0 for one in here)):
                yield datagram[offset:end]
            offset = end
        yield datagram[offset:]  # whatever is no message is refused by who decodes it


class Conntrack(Client):
    """A conversation about connections."""

    def __init__(self, host: SocketSource) -> None:
        super().__init__(host, NETLINK_NETFILTER, DIALECT)

    def list(self, request: Request, sought: Collection[bytes] = ()) -> list[_Attributes]:
        """Return connections; if bytes are given, only those that have any of them somewhere."""
        self._dialect = Mentioning(sought) if sought else DIALECT
        try:
            return [dict(message.attributes) for message in self.dump(request)]
        finally:
            self._dialect = DIALECT


class Connections:
    """The connections of a host's stack. Every method blocks, may be called by several threads, raises KernelError.

    Looking for connections takes the kernel a walk over its whole table: with ten thousand, some ten milliseconds.
    """

    def __init__(self, host: SocketSource) -> None:
        self._host = host
        self._client = Standing(lambda: Conntrack(host))

    def forget(self, addresses: Collection[Address]) -> None:
        """Forget every connection from or to some addresses."""
        if not addresses:
            return
        with self._client.lent() as client:
            rest = {
                address
                for address in addresses
                if not (isinstance(address, IPv4Address) and _forget_at_once(client, address))
            }
            if not rest:
                return
            versions = {address.version for address in rest}
            request = _request(GET, versions.pop() if len(versions) == 1 else 0, {}, "list", "connections")
            for connection in client.list(request, [address.packed for address in rest]):
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
            client.list(_request(GET, 4, _udp_to(0), "list", "connections"))


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


def _to_ports(client: Conntrack, ports: Sequence[HostPort]) -> Iterator[tuple[HostPort, list[_Attributes]]]:
    """Yield the UDP connections to each port: the kernel's walk is for one port, or, if they are many, for all of UDP."""
    for version in (4, 6):
        ours = [port for port in ports if port.pod.version == version]
        if len(ours) > _MANY:
            request = _request(GET, version, _udp_to(None), "list", "UDP connections")
            everything = client.list(request, {_to_port(port.host_port) for port in ours})
            for port in ours:
                yield port, [one for one in everything if _is_udp_to(one, port.host_port)]
            continue
        for port in ours:
            what = f"UDP connections to port {port.host_port}"
            found = client.list(_request(GET, version, _udp_to(port.host_port), "list", what))
            yield port, [one for one in found if _is_udp_to(one, port.host_port)]


def _udp_to(port: int | None) -> _Attributes:
    if port is None:
        return _filtered("original", {"proto": {"number": socket.IPPROTO_UDP}}, _BY_PROTOCOL)
    proto = {"number": socket.IPPROTO_UDP, "dst_port": port}
    return _filtered("original", {"proto": proto}, _BY_PROTOCOL | _BY_DESTINATION_PORT)


def _is_udp_to(connection: _Attributes, port: int) -> bool:
    return _has(connection, "original", number=socket.IPPROTO_UDP, dst_port=port)


def _to_port(port: int) -> bytes:
    """Return the attribute of a connection's destination port as the kernel writes it."""
    code, codec = PROTO.by_name["dst_port"]
    payload = codec.encode(port)
    return struct.pack("=HH", 4 + len(payload), code) + payload


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
    return Request(Message(kind, NetfilterHeader(_FAMILIES[version]), attributes), operation, what)


def _local_addresses(host: SocketSource) -> set[Address]:
    message = Message(route.GETADDR, route.AddressHeader())
    with Client(host, NETLINK_ROUTE, route.DIALECT) as client:
        return {
            answer.attributes.get("local") or answer.attributes["address"]
            for answer in client.dump(Request(message, "list", "addresses"))
        }
