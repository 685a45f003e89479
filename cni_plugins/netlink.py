"""Netlink's route messages as tables: bytes in, values out, no socket anywhere.

A datagram holds messages; a message is `struct nlmsghdr`, a fixed header that its type decides, and
attributes (type, length, value, each padded to 4 bytes), some of which hold attributes again. All of that
stands in the tables below, and two functions, `encode` and `decode`, walk them.

Attributes are dictionaries from the table's names to values. An attribute that no table knows is kept, under
its number, as bytes. All integers are in the machine's byte order, except inside addresses.

Sources: netlink(7), rtnetlink(7), linux/{netlink,rtnetlink,if_link,if_addr}.h; FreeBSD's netlink(4) and
rtnetlink(4) keep the same numbers for everything here but address families and the main routing table, and
`freebsd.c` holds the compiler to it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, NamedTuple, Protocol, TypeAlias

from cni_plugins.errors import MalformedMessageError

Attributes: TypeAlias = Mapping[str | int, Any]

# Message types.
NOOP, ERROR, DONE = 1, 2, 3
NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26

# Flags of nlmsghdr. The second line holds only for NEW*, `DUMP` only for GET*, the last only for ERROR.
REQUEST, MULTI, ACK = 0x1, 0x2, 0x4
EXCL, CREATE = 0x200, 0x400
DUMP = 0x300
CAPPED, ACK_TLVS = 0x100, 0x200

# Flags and modes of what the messages describe.
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
IFA_F_NODAD = 0x2
INFINITE_LIFETIME = 0xFFFFFFFF
ADDR_GEN_MODE_NONE = 1
RTEXT_FILTER_SKIP_STATS = 0x8
RT_TABLE_MAIN = 0 if sys.platform.startswith("freebsd") else 254  # there it is the number of a FIB
RTPROT_STATIC = 4
RTN_UNICAST = 1

_NLMSGHDR = Struct("=IHHII")
_NLATTR = Struct("=HH")
_INT = Struct("=i")
_TYPE_MASK = 0x3FFF  # the two high bits say "nested" and "network byte order"; the kernel may set them


class LinkHeader(NamedTuple):
    """struct ifinfomsg. `change` is the mask of the `flags` that shall take effect."""

    family: int = 0
    kind: int = 0
    ifindex: int = 0
    flags: int = 0
    change: int = 0


class AddressHeader(NamedTuple):
    """struct ifaddrmsg."""

    family: int = 0
    prefixlen: int = 0
    flags: int = 0
    scope: int = 0
    ifindex: int = 0


class RouteHeader(NamedTuple):
    """struct rtmsg."""

    family: int = 0
    dst_len: int = 0
    src_len: int = 0
    tos: int = 0
    table: int = RT_TABLE_MAIN
    protocol: int = RTPROT_STATIC
    scope: int = 0
    kind: int = RTN_UNICAST
    flags: int = 0


Header: TypeAlias = LinkHeader | AddressHeader | RouteHeader

_STRUCTS: dict[type[Header], Struct] = {
    LinkHeader: Struct("=BxHiII"),
    AddressHeader: Struct("=BBBBI"),
    RouteHeader: Struct("=BBBBBBBBI"),
}


@dataclass(frozen=True, slots=True)
class Message:
    """One route message: a request when we send it, an answer or a notification when the kernel does."""

    type: int
    header: Header
    attributes: Attributes = field(default_factory=dict)
    flags: int = 0
    sequence: int = 0
    port: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The kernel's verdict on the request `sequence`: errno 0 is success, `text` its explanation if any.

    `cookie` is what else the kernel has to say; FreeBSD tells of a link that was created, see `LINK_COOKIE`.
    """

    sequence: int
    errno: int
    text: str = ""
    offset: int | None = None
    cookie: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the dump `sequence`, which failed on the way if errno is not 0."""

    sequence: int
    errno: int = 0


class Codec(Protocol):
    """Turns one attribute's value into its payload and back."""

    def encode(self, value: Any) -> bytes:
        """Return the payload for a value; raises what struct, str or ipaddress raise for a wrong one."""

    def decode(self, payload: bytes) -> Any:
        """Return the value of a payload, likewise."""


class Integer:
    """An unsigned integer of fixed width."""

    def __init__(self, layout: str) -> None:
        self._struct = Struct(layout)

    def encode(self, value: int) -> bytes:
        """Refuses what does not fit."""
        return self._struct.pack(value)

    def decode(self, payload: bytes) -> int:
        """Refuses another width."""
        value: int = self._struct.unpack(payload)[0]
        return value


class Opaque:
    """Bytes that only the receiver can read."""

    def encode(self, value: bytes) -> bytes:
        """Any."""
        return bytes(value)

    def decode(self, payload: bytes) -> bytes:
        """Any."""
        return payload


class Integers:
    """A structure of unsigned integers, as a tuple."""

    def __init__(self, layout: str) -> None:
        self._struct = Struct(layout)

    def encode(self, value: tuple[int, ...]) -> bytes:
        """Refuses what does not fit."""
        return self._struct.pack(*value)

    def decode(self, payload: bytes) -> tuple[int, ...]:
        """Refuses another width."""
        return self._struct.unpack(payload)


class Text:
    """A string, ended by a zero byte (which some senders leave out)."""

    def encode(self, value: str) -> bytes:
        """Refuses a zero inside, which would cut the string silently."""
        if "\0" in value:
            raise ValueError("a zero byte inside a string")
        return value.encode(errors="surrogateescape") + b"\0"

    def decode(self, payload: bytes) -> str:
        """Bytes that are no UTF-8 (an interface may be called so) survive as surrogates."""
        return payload.removesuffix(b"\0").decode(errors="surrogateescape")


class Hardware:
    """A link-layer address, written as aa:bb:cc:dd:ee:ff."""

    def encode(self, value: str) -> bytes:
        """Refuses what is not pairs of hex digits."""
        return bytes.fromhex(value.replace(":", ""))

    def decode(self, payload: bytes) -> str:
        """Any length: tunnels have 4 or 16 bytes here."""
        return payload.hex(":")


class Address:
    """An IPv4 or IPv6 address; its length tells which."""

    def encode(self, value: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
        """Network byte order."""
        return value.packed

    def decode(self, payload: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """Refuses lengths other than 4 and 16."""
        return ipaddress.ip_address(payload)


class Table:
    """The attributes that may stand together: their names, numbers and codecs, readable both ways."""

    def __init__(self, **attributes: tuple[int, Codec]) -> None:
        self.by_name: dict[str, tuple[int, Codec]] = {}
        self.by_code: dict[int, tuple[str, Codec]] = {}
        self.define(**attributes)

    def define(self, **attributes: tuple[int, Codec]) -> None:
        """Add attributes, or replace those of the same name (a table may contain itself)."""
        for name, (code, codec) in attributes.items():
            self.by_name[name] = code, codec
            self.by_code[code] = name, codec


class Nested:
    """Attributes inside an attribute, after a fixed header if there is one (as in veth's peer)."""

    def __init__(self, table: Table, header: type[Header] | None = None) -> None:
        self._table = table
        self._header = header

    def encode(self, value: Attributes) -> bytes:
        """Encode a dictionary; the fixed header is under the key "header"."""
        values = dict(value)
        prefix = b""
        if self._header:
            prefix = _STRUCTS[self._header].pack(*values.pop("header", self._header()))
        return prefix + _encode_attributes(values, self._table)

    def decode(self, payload: bytes) -> dict[str | int, Any]:
        """The reverse."""
        if not self._header:
            return _decode_attributes(payload, self._table)
        layout = _STRUCTS[self._header]
        header = self._header(*layout.unpack_from(payload))
        return {"header": header, **_decode_attributes(payload[layout.size :], self._table)}


class LinkInfo:
    """IFLA_LINKINFO: what `data` holds depends on `kind`, and `port_data` on `port_kind`.

    The data of a kind that is in no table stay bytes, under their number.
    """

    def __init__(self, kinds: Mapping[str, Table], ports: Mapping[str, Table]) -> None:
        self._kinds = {kind: Nested(table) for kind, table in kinds.items()}
        self._ports = {kind: Nested(table) for kind, table in ports.items()}
        self._tables: dict[tuple[Nested | None, Nested | None], Table] = {}

    def _table(self, values: Attributes) -> Table:
        chosen = self._kinds.get(values.get("kind", "")), self._ports.get(values.get("port_kind", ""))
        if chosen not in self._tables:
            data, port_data = chosen
            table = Table(kind=(1, TEXT), port_kind=(4, TEXT))
            if data:
                table.define(data=(2, data))
            if port_data:
                table.define(port_data=(5, port_data))
            self._tables[chosen] = table
        return self._tables[chosen]

    def encode(self, value: Attributes) -> bytes:
        """Refuses data without a kind that is known."""
        return _encode_attributes(value, self._table(value))

    def decode(self, payload: bytes) -> dict[str | int, Any]:
        """The kinds are read first, in whatever order the attributes come."""
        return _decode_attributes(payload, self._table(_decode_attributes(payload, self._table({}))))


U8, U16, U32 = Integer("=B"), Integer("=H"), Integer("=I")
TEXT, HARDWARE, ADDRESS = Text(), Hardware(), Address()

LINK = Table(
    address=(1, HARDWARE),
    name=(3, TEXT),
    mtu=(4, U32),
    link=(5, U32),
    master=(10, U32),
    operstate=(16, U8),
    alias=(20, TEXT),
    group=(27, U32),
    netns_fd=(28, U32),
    ext_mask=(29, U32),
    tx_queues=(31, U32),
    rx_queues=(32, U32),
)
BRIDGE = Table(
    forward_delay=(1, U32),
    ageing_time=(4, U32),
    stp_state=(5, U32),
    vlan_filtering=(7, U8),
    mcast_snooping=(23, U8),
)
BRIDGE_PORT = Table(state=(1, U8), hairpin=(4, U8), isolated=(33, U8))
VETH = Table(peer=(1, Nested(LINK, header=LinkHeader)))
INET6 = Table(flags=(1, U32), addr_gen_mode=(8, U8))
FAMILIES = Table(inet6=(socket.AF_INET6, Nested(INET6)))
LINK.define(
    info=(18, LinkInfo({"bridge": BRIDGE, "veth": VETH}, {"bridge": BRIDGE_PORT})),
    families=(26, Nested(FAMILIES)),
)
ADDRESSES = Table(
    address=(1, ADDRESS),
    local=(2, ADDRESS),
    label=(3, TEXT),
    broadcast=(4, ADDRESS),
    cacheinfo=(6, Integers("=IIII")),  # seconds preferred and valid, when created and changed
    flags=(8, U32),
)
ROUTE = Table(
    dst=(1, ADDRESS),
    src=(2, ADDRESS),
    oif=(4, U32),
    gateway=(5, ADDRESS),
    priority=(6, U32),
    prefsrc=(7, ADDRESS),
    table=(15, U32),
)
EXTENDED_ACK = Table(text=(1, TEXT), offset=(2, U32), cookie=(3, Opaque()))
LINK_COOKIE = Nested(LINK)

MESSAGES: dict[int, tuple[type[Header], Table]] = {
    **dict.fromkeys((NEWLINK, DELLINK, GETLINK), (LinkHeader, LINK)),
    **dict.fromkeys((NEWADDR, DELADDR, GETADDR), (AddressHeader, ADDRESSES)),
    **dict.fromkeys((NEWROUTE, DELROUTE, GETROUTE), (RouteHeader, ROUTE)),
}


def _padding(length: int) -> int:
    return -length % 4


def _encode_attributes(values: Attributes, table: Table) -> bytes:
    parts = []
    for name, value in values.items():
        if isinstance(name, int):
            code, payload = name, bytes(value)
        elif name in table.by_name:
            code, codec = table.by_name[name]
            try:
                payload = codec.encode(value)
            except (struct.error, ValueError, TypeError, AttributeError) as error:
                raise MalformedMessageError(
                    f"netlink attribute {name}: {value!r} does not fit: {error}"
                ) from error
        else:
            raise MalformedMessageError(
                f"netlink attribute {name} is not in the table; it has {sorted(table.by_name)}"
            )
        length = _NLATTR.size + len(payload)
        if length > 0xFFFF:
            raise MalformedMessageError(
                f"netlink attribute {name}: {len(payload)} bytes are too long for one"
            )
        parts.append(_NLATTR.pack(length, code) + payload + bytes(_padding(length)))
    return b"".join(parts)


def _decode_attributes(data: bytes, table: Table) -> dict[str | int, Any]:
    values: dict[str | int, Any] = {}
    offset = 0
    while offset < len(data):
        if len(data) - offset < _NLATTR.size:
            raise MalformedMessageError(f"netlink attribute cut short: {len(data) - offset} bytes are left")
        length, code = _NLATTR.unpack_from(data, offset)
        if not _NLATTR.size <= length <= len(data) - offset:
            raise MalformedMessageError(f"netlink attribute {code & _TYPE_MASK} claims {length} bytes")
        payload = data[offset + _NLATTR.size : offset + length]
        code &= _TYPE_MASK
        if code in table.by_code:
            name, codec = table.by_code[code]
            try:
                values[name] = codec.decode(payload)
            except (struct.error, ValueError) as error:
                raise MalformedMessageError(f"netlink attribute {name}: {payload.hex()}: {error}") from error
        else:
            values[code] = payload
        offset += length + _padding(length)
    return values


def encode(message: Message) -> bytes:
    """Return one message as bytes, padded so that another may follow it in the same datagram.

    Raises MalformedMessageError for a value that does not fit its attribute or header.
    """
    header_type, table = MESSAGES[message.type]
    try:
        header = _STRUCTS[header_type].pack(*message.header)
    except struct.error as error:
        raise MalformedMessageError(f"netlink header {message.header}: {error}") from error
    body = header + _encode_attributes(message.attributes, table)
    length = _NLMSGHDR.size + len(body)
    return _NLMSGHDR.pack(length, message.type, message.flags, message.sequence, message.port) + body


def _errno(body: bytes) -> int:
    """Read an error: Linux sends it negated, FreeBSD does not."""
    value: int = _INT.unpack_from(body)[0]
    return abs(value)


def _decode_acknowledgement(flags: int, sequence: int, body: bytes) -> Acknowledgement:
    """Read NLMSG_ERROR: the error, the request's header, its body unless CAPPED, and then the explanation."""
    error = _errno(body)
    request_length = _NLMSGHDR.unpack_from(body, _INT.size)[0]
    if not flags & (ACK_TLVS | CAPPED):
        return Acknowledgement(sequence, error)
    # FreeBSD sets only CAPPED where the sole attribute is the cookie.
    echoed = _NLMSGHDR.size if flags & CAPPED else request_length
    explanation = _decode_attributes(body[_INT.size + echoed + _padding(echoed) :], EXTENDED_ACK)
    return Acknowledgement(
        sequence,
        error,
        explanation.get("text", ""),
        explanation.get("offset"),
        explanation.get("cookie", b""),
    )


def decode(datagram: bytes) -> list[Message | Acknowledgement | Done]:
    """Return the messages of one datagram, in their order; types that no table knows are left out.

    Raises MalformedMessageError for lengths that contradict each other and values of the wrong size.
    """
    messages: list[Message | Acknowledgement | Done] = []
    offset = 0
    while offset < len(datagram):
        try:
            length, kind, flags, sequence, port = _NLMSGHDR.unpack_from(datagram, offset)
            if not _NLMSGHDR.size <= length <= len(datagram) - offset:
                raise MalformedMessageError(f"netlink message of type {kind} claims {length} bytes")
            body = datagram[offset + _NLMSGHDR.size : offset + length]
            if kind == ERROR:
                messages.append(_decode_acknowledgement(flags, sequence, body))
            elif kind == DONE:
                messages.append(Done(sequence, _errno(body) if body else 0))
            elif kind in MESSAGES:
                header_type, table = MESSAGES[kind]
                layout = _STRUCTS[header_type]
                header = header_type(*layout.unpack_from(body))
                attributes = _decode_attributes(body[layout.size :], table)
                messages.append(Message(kind, header, attributes, flags, sequence, port))
        except struct.error as error:
            raise MalformedMessageError(f"netlink message cut short at byte {offset}: {error}") from error
        offset += length + _padding(length)
    return messages
