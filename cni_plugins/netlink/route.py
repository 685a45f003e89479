"""The messages of NETLINK_ROUTE: links, addresses and routes.

Sources: rtnetlink(7), linux/{rtnetlink,if_link,if_addr}.h; FreeBSD's netlink(4) and rtnetlink(4) keep the same numbers
for everything here but address families and the main routing table, and `freebsd/kernel.c` holds the compiler to it.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

from cni_plugins.netlink.codec import (
    ADDRESS,
    HARDWARE,
    I32,
    TEXT,
    U8,
    U32,
    Attributes,
    Choice,
    HeaderType,
    Integers,
    Nested,
    Table,
    encode_attributes,
    header,
)
from cni_plugins.netlink.messages import Answer, Dialect, Message

# Message types.
NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNETCONF, GETNETCONF = 80, 82  # Linux only

# Flags and modes of what the messages describe.
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x8, 0x40, 0x100, 0x200
IFA_F_NODAD = 0x2
INFINITE_LIFETIME = 0xFFFFFFFF
ADDR_GEN_MODE_NONE = 1
RTEXT_FILTER_SKIP_STATS = 0x8
RT_TABLE_MAIN = 0 if sys.platform.startswith("freebsd") else 254  # there it is the number of a FIB
RTPROT_STATIC = 4
RTPROT_RA = 9
RTN_UNICAST = 1
RT_SCOPE_LINK = 253
NETCONF_ALL = -1


@header("=BxHiII")
class LinkHeader(NamedTuple):
    """struct ifinfomsg. `change` is the mask of the `flags` that shall take effect."""

    family: int = 0
    kind: int = 0
    ifindex: int = 0
    flags: int = 0
    change: int = 0


@header("=BBBBI")
class AddressHeader(NamedTuple):
    """struct ifaddrmsg."""

    family: int = 0
    prefixlen: int = 0
    flags: int = 0
    scope: int = 0
    ifindex: int = 0


@header("=BBBBBBBBI")
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


@header("=Bxxx")
class NetconfHeader(NamedTuple):
    """struct netconfmsg."""

    family: int = 0


class InetConf:
    """IFLA_INET_CONF: attributes when it is sent to the kernel, an array with an entry for every number from it."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def encode(self, value: Attributes) -> bytes:
        """Encode the entries that shall change."""
        return encode_attributes(value, self._table)

    def decode(self, payload: bytes) -> dict[str, int]:
        """Return the entries that the table names and the kernel has."""
        entries = [value for (value,) in struct.iter_unpack("=I", payload)]
        return {
            name: entries[code - 1] for name, (code, _) in self._table.by_name.items() if code <= len(entries)
        }


LINK = Table(
    address=(1, HARDWARE),
    name=(3, TEXT),
    mtu=(4, U32),
    link=(5, U32),
    master=(10, U32),
    tx_queue_length=(13, U32),
    operstate=(16, U8),
    alias=(20, TEXT),
    group=(27, U32),
    netns_fd=(28, U32),
    ext_mask=(29, U32),
    promiscuity=(30, U32),  # how many want it
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
LINK_INFO = Table(kind=(1, TEXT), port_kind=(4, TEXT)).choose(
    data=Choice(2, "kind", {"bridge": BRIDGE, "veth": VETH}),
    port_data=Choice(5, "port_kind", {"bridge": BRIDGE_PORT}),
)
# An interface's entries below /proc/sys/net/ipv4/conf; the numbers are IPV4_DEVCONF_* (linux/ip.h).
INET_CONF = Table(forwarding=(1, U32), rp_filter=(8, U32), route_localnet=(26, U32))
INET = Table(conf=(1, InetConf(INET_CONF)))
INET6 = Table(flags=(1, U32), addr_gen_mode=(8, U8))
FAMILIES = Table(inet=(socket.AF_INET, Nested(INET)), inet6=(socket.AF_INET6, Nested(INET6)))
LINK.define(info=(18, Nested(LINK_INFO)), families=(26, Nested(FAMILIES)))
LINK_COOKIE = Nested(LINK)
ADDRESSES = Table(
    address=(1, ADDRESS),
    local=(2, ADDRESS),
    label=(3, TEXT),
    broadcast=(4, ADDRESS),
    cacheinfo=(6, Integers("=IIII")),  # seconds preferred and valid, when created and changed
    flags=(8, U32),
)
METRICS = Table(mtu=(2, U32), advmss=(8, U32))
ROUTE = Table(
    dst=(1, ADDRESS),
    src=(2, ADDRESS),
    oif=(4, U32),
    gateway=(5, ADDRESS),
    priority=(6, U32),
    prefsrc=(7, ADDRESS),
    metrics=(8, Nested(METRICS)),
    table=(15, U32),
)
NETCONF = Table(ifindex=(1, I32), forwarding=(2, I32))

MESSAGES: dict[int, tuple[HeaderType, Table]] = {
    **dict.fromkeys((NEWLINK, DELLINK, GETLINK), (LinkHeader, LINK)),
    **dict.fromkeys((NEWADDR, DELADDR, GETADDR), (AddressHeader, ADDRESSES)),
    **dict.fromkeys((NEWROUTE, DELROUTE, GETROUTE), (RouteHeader, ROUTE)),
    **dict.fromkeys((NEWNETCONF, GETNETCONF), (NetconfHeader, NETCONF)),
}
DIALECT = Dialect(MESSAGES)


def encode(message: Message) -> bytes:
    """Return one message of NETLINK_ROUTE as bytes, see `Dialect.encode`."""
    return DIALECT.encode(message)


def decode(datagram: bytes) -> list[Answer]:
    """Return the messages of one datagram of NETLINK_ROUTE, see `Dialect.decode`."""
    return DIALECT.decode(datagram)
