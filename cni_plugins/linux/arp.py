"""Gratuitous ARP: telling the neighbours of an interface that its addresses have another MAC now.

Sources: RFC 5227, section 3; packet(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from cni_plugins.errors import KernelError
from cni_plugins.types import InterfaceAddress, SocketSource

_ARP, _IPV4, _ETHERNET, _REQUEST = 0x0806, 0x0800, 1, 1
_EVERYBODY = b"\xff" * 6


def announce(stack: SocketSource, name: str, mac: str, addresses: Iterable[InterfaceAddress]) -> None:
    """Announce the IPv4 ones of some addresses. One that cannot be sent, as the link is down, is not missed by anybody."""
    octets = bytes.fromhex(mac.replace(":", ""))
    packets = [packet(octets, address.ip.packed) for address in addresses if address.version == 4]
    if not packets:
        return
    try:
        with stack.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0) as sock:
            for each in packets:
                sock.sendto(each, (name, _ARP, 0, 0, _EVERYBODY))
    except OSError as error:
        if error.errno not in (errno.ENETDOWN, errno.ENOBUFS):
            raise KernelError(error.errno or errno.EIO, "announce the MAC of", f"interface {name}") from error


def packet(mac: bytes, address: bytes) -> bytes:
    """Return the announcement of one address: a question for it by its owner."""
    head = struct.pack("!HHBBH", _ETHERNET, _IPV4, len(mac), len(address), _REQUEST)
    return head + mac + address + bytes(len(mac)) + address
