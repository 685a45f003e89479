"""Interfaces that route 127.0.0.0/8, so that 127.0.0.1:<host port> reaches a pod.

Linux drops what comes from or goes to 127.0.0.0/8 on every interface but loopback, unless its `route_localnet` is set
(Documentation/networking/ip-sysctl.rst). Where it is, the pods could reach what listens on the node's loopback only:
`host_ports` has a rule that keeps them from it, on the interfaces that were opened for its sake.

All of it is set and read over route netlink, in the stack that the socket is from: /proc/sys would be another one's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from typing import Any

from cni_plugins.errors import KernelError
from cni_plugins.netlink import route
from cni_plugins.netlink.client import Request
from cni_plugins.netlink.messages import Message
from cni_plugins.rtnetlink import GONE, Routes
from cni_plugins.types import Address, SocketSource

_SIOCGIFNAME = 0x8910  # netdevice(7)
_IFREQ = struct.Struct("@16xi20x")
_IFNAMSIZ = 16
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})


def route_localnet(host: SocketSource, interface: str, *, on: bool = True) -> bool:
    """Let an interface of the host route 127.0.0.0/8, or not any more; False if there is no such interface.

    Raises KernelError.
    """
    conf = {"inet": {"conf": {"route_localnet": int(on)}}}
    with Routes.of(host) as routes:
        try:
            routes.link_set(interface, families=conf)
        except KernelError as error:
            if error.errno in GONE:
                return False
            raise
    return True


def interfaces_to(host: SocketSource, addresses: Iterable[Address]) -> dict[Address, str]:
    """Return the interface that each of some IPv4 addresses is on the link of; no entry where there is none.

    Raises KernelError.
    """
    found: dict[Address, str] = {}
    names: dict[int, str] = {}
    with Routes.of(host) as routes, _datagrams(host) as sock:
        for address in addresses:
            index = _link_to(routes, address)
            if index and index not in names:
                names[index] = _name(sock, index)
            if index and names[index]:
                found[address] = names[index]
    return found


def _link_to(routes: Routes, address: Address) -> int:
    header = route.RouteHeader(socket.AF_INET, dst_len=32, table=0, protocol=0, kind=0)
    message = Message(route.GETROUTE, header, {"dst": address})
    try:
        answers = routes.ask(Request(message, "find", f"the route to {address}"))
    except KernelError as error:
        if error.errno in _UNREACHABLE:
            return 0
        raise
    attributes: dict[str | int, Any] = dict(answers[0].attributes) if answers else {}
    # Behind a router, or the host's own: not on a link, and no business of ours.
    if "gateway" in attributes or not _is_unicast(answers):
        return 0
    return int(attributes.get("oif", 0))


def _is_unicast(answers: list[Message]) -> bool:
    return any(
        isinstance(answer.header, route.RouteHeader) and answer.header.kind == route.RTN_UNICAST
        for answer in answers
    )


def _datagrams(host: SocketSource) -> socket.socket:
    try:
        return host.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, "make", "a socket to name interfaces by") from error


def _name(sock: socket.socket, index: int) -> str:
    """Return the name of a link of the stack that a socket is in: netlink would tell all that there is about it."""
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFNAME, _IFREQ.pack(index))
    except OSError as error:
        if error.errno in GONE:
            return ""
        raise KernelError(error.errno or errno.EIO, "find", f"interface {index}") from error
    return os.fsdecode(answer[:_IFNAMSIZ].rstrip(b"\0"))
