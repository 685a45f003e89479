"""Unsolicited neighbour advertisements: telling the neighbours of an interface that IPv6 addresses have its MAC now.

The kernel does so for IPv4 and not for IPv6. Whoever knew the address as another pod's would go on sending to that one,
the node for up to a minute, until it asks again. Sources: RFC 4861, sections 4.4 and 7.2.6; RFC 9131.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from cni_plugins.errors import KernelError
from cni_plugins.types import Address, InterfaceAddress, SocketSource

_ADVERTISEMENT, _OVERRIDE = 136, 1 << 29
_TARGET_MAC, _EIGHT_BYTES = 2, 1
_HOPS = 255  # with any other number it would not be believed: it might be from beyond a router
_EVERYBODY = "ff02::1"
_UNHEARD = frozenset(
    {errno.ENETDOWN, errno.ENOBUFS}
)  # nobody is there, or the link is busy: they ask in time
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})  # a jail without allow.raw_sockets: they ask in time


def advertise(
    stack: SocketSource, index: int, name: str, mac: str, addresses: Iterable[InterfaceAddress]
) -> None:
    """Advertise those of an interface's addresses that are of IPv6 and not link-local. Raises KernelError."""
    for address in (each.ip for each in addresses if each.version == 6 and not each.is_link_local):
        try:
            with stack.socket(
                socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6
            ) as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
                sock.bind((str(address), 0))
                sock.sendto(packet(mac, address), (_EVERYBODY, 0, 0, index))
        except OSError as error:
            if error.errno not in _UNHEARD | _FORBIDDEN:
                raise KernelError(
                    error.errno or errno.EIO, f"advertise {address} on", f"interface {name}"
                ) from error


def packet(mac: str, address: Address) -> bytes:
    """Return the advertisement of one address; the kernel fills in the checksum."""
    head = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE)
    return head + address.packed + bytes([_TARGET_MAC, _EIGHT_BYTES]) + bytes.fromhex(mac.replace(":", ""))
