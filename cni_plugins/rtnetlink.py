"""Links, addresses and routes of one network stack, over one blocking route-netlink socket.

Several requests may go to the kernel in one datagram: it works them off in order and acknowledges each. It
does not stop at one that it refuses, so only requests that hurt nobody after a refusal travel together.

Sources: rtnetlink(7); linux/rtnetlink.h; net/core/rtnetlink.c of Linux for what one NEWLINK may carry.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from types import TracebackType
from typing import Any, NamedTuple, Self

from cni_plugins import netlink
from cni_plugins.errors import KernelError, MalformedMessageError
from cni_plugins.netlink import AddressHeader, LinkHeader, Message, RouteHeader
from cni_plugins.types import Address, InterfaceAddress, SocketSource

# CPython knows the family only where it was built with the right header; FreeBSD's number is 38.
AF_NETLINK: int = getattr(socket, "AF_NETLINK", 38 if sys.platform.startswith("freebsd") else 16)
NETLINK_ROUTE = 0

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_ANSWER_TIMEOUT = struct.pack("@ll", 10, 0)  # struct timeval; only a kernel with a stuck lock takes so long
_BRIEF: dict[str | int, Any] = {"ext_mask": netlink.RTEXT_FILTER_SKIP_STATS}  # FreeBSD passes over it
_BUFFER = 1 << 16  # the kernel fills at most 32 KiB per datagram of a dump


class Request(NamedTuple):
    """A message with the words for its failure: cannot <operation> <object>."""

    message: Message
    operation: str
    object: str


class _Answers(NamedTuple):
    """Of a batch: the messages that it asked for, and the verdict on every request, in the kernel's order."""

    messages: list[Message]
    verdicts: list[netlink.Acknowledgement]


@dataclass(frozen=True, slots=True)
class Link:
    """One interface as the kernel describes it; `master` is the index of the bridge that it is in, or 0.

    FreeBSD's kernel does not tell of `master` here. `alias` is what ifconfig(8) calls the description there.
    """

    name: str
    index: int
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    master: int = 0
    up: bool = False
    loopback: bool = False
    alias: str = ""


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a veth pair that is to be made."""

    name: str
    mac: str


def link_set(name: str, **changes: Any) -> Request:
    """Return the request to change a link, found by its name: up, master, mtu, mac, families, info."""
    attributes: dict[str | int, Any] = {"name": name}
    for key, value in changes.items():
        if key == "mac":
            attributes["address"] = value
        elif key != "up":
            attributes[key] = value
    flags = netlink.IFF_UP if changes.get("up") else 0
    change = netlink.IFF_UP if "up" in changes else 0
    header = LinkHeader(flags=flags, change=change)
    return Request(Message(netlink.NEWLINK, header, attributes), "change", f"interface {name}")


def link_del(name: str) -> Request:
    """Return the request to delete a link, found by its name."""
    return Request(Message(netlink.DELLINK, LinkHeader(), {"name": name}), "delete", f"interface {name}")


def address_add(index: int, name: str, address: InterfaceAddress) -> Request:
    """Return the request to give an interface an address, usable at once (no duplicate address detection).

    FreeBSD replaces an address that is there already, where Linux answers EEXIST.
    """
    attributes: dict[str | int, Any] = {"local": address.ip, "address": address.ip}
    if address.version == 6:
        attributes["flags"] = netlink.IFA_F_NODAD
        # FreeBSD takes a lifetime that is not given for zero, and then silently adds nothing.
        attributes["cacheinfo"] = (netlink.INFINITE_LIFETIME, netlink.INFINITE_LIFETIME, 0, 0)
    elif address.network.prefixlen < 31:
        attributes["broadcast"] = address.network.broadcast_address
    message = Message(
        netlink.NEWADDR,
        AddressHeader(_family(address.version), address.network.prefixlen, ifindex=index),
        attributes,
        netlink.CREATE | netlink.EXCL,
    )
    return Request(message, f"add address {address} to", f"interface {name}")


def route_add_default(index: int, name: str, gateway: Address) -> Request:
    """Return the request for a default route over an interface to a gateway on its link."""
    header = RouteHeader(_family(gateway.version))
    flags = netlink.CREATE | netlink.EXCL
    anywhere = ip_address("::" if gateway.version == 6 else "0.0.0.0")  # Linux would assume it
    attributes: dict[str | int, Any] = {"dst": anywhere, "gateway": gateway, "oif": index}
    message = Message(netlink.NEWROUTE, header, attributes, flags)
    return Request(message, f"add the default route via {gateway} on", f"interface {name}")


def _family(version: int) -> int:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


class Routes:
    """A client for the stack that the given socket was made in.

    It owns the socket: use it as a context manager. One thread at a time; calls block until the kernel has
    answered, ten seconds at most. Every method raises KernelError with the kernel's own words.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0
        try:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        except OSError as error:
            sock.close()
            raise KernelError(error.errno or errno.EIO, "prepare", "a netlink socket") from error

    @classmethod
    def of(cls, stack: SocketSource) -> Self:
        """Return a client on a new socket made inside a stack."""
        kind = socket.SOCK_RAW | getattr(socket, "SOCK_CLOEXEC", 0)
        try:
            sock = stack.socket(AF_NETLINK, kind, NETLINK_ROUTE)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, "make", "a netlink socket") from error
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def link(self, name: str) -> Link:
        """Return one link; KernelError with ENODEV if there is none of that name."""
        message = Message(netlink.GETLINK, LinkHeader(), {"name": name, **_BRIEF})
        request = Request(message, "find", f"interface {name}")
        for answer in self._exchange([request]).messages:
            return _link(answer)
        raise KernelError(errno.ENODEV, "find", f"interface {name}", "no answer")

    def link_index(self, name: str) -> int:
        """Return the index of a link, which is needed to name it in addresses and routes."""
        return self.link(name).index

    def link_add_veth(
        self, end: LinkEnd, peer: LinkEnd, peer_netns: int, *, mtu: int, master: int = 0, up: bool = False
    ) -> None:
        """Make a veth pair in one request: this end here, perhaps up and in a bridge, the peer in another stack.

        `peer_netns` is an open descriptor of the peer's namespace, `master` the index of a bridge. The peer
        stays down: the kernel cannot bring it up before the pair is complete. EEXIST if either name is taken.
        """
        # One queue each: by default a veth gets a receive queue, with its sysfs entries, per possible CPU.
        shape: dict[str | int, Any] = {"mtu": mtu, "tx_queues": 1, "rx_queues": 1}
        far = {"name": peer.name, "address": peer.mac, "netns_fd": peer_netns, **shape}
        near: dict[str | int, Any] = {"name": end.name, "address": end.mac, **shape}
        near["info"] = {"kind": "veth", "data": {"peer": far}}
        if master:
            near["master"] = master
        self._create(near, f"veth pair {end.name} and {peer.name}", up=up)

    def link_add_bridge(self, name: str, mac: str, mtu: int) -> None:
        """Make a bridge, up, with a fixed MAC: else it takes its members', and changes it when they leave."""
        attributes: dict[str | int, Any] = {
            "name": name,
            "address": mac,
            "mtu": mtu,
            "info": {"kind": "bridge"},
        }
        self._create(attributes, f"bridge {name}", up=True)

    def link_create(self, kind: str, alias: str) -> str:
        """Make a link, down, under a name that the kernel chooses (FreeBSD), and return that name.

        In the same system call it gets an alias, so that it can be told from others however early its maker dies.
        Of an epair(4) the name and the alias are the first end's.
        """
        attributes: dict[str | int, Any] = {"name": kind, "alias": alias, "info": {"kind": kind}}
        header = LinkHeader(change=netlink.IFF_UP)
        message = Message(netlink.NEWLINK, header, attributes, netlink.CREATE | netlink.EXCL)
        verdicts = self._exchange([Request(message, "create", f"{kind} for {alias}")]).verdicts
        name: str = netlink.LINK_COOKIE.decode(verdicts[0].cookie)["name"]
        return name

    def link_set(self, name: str, **changes: Any) -> None:
        """Change a link: up (bool), master (index), mtu, mac, families and info as in `netlink.LINK`."""
        self.perform(link_set(name, **changes))

    def link_del(self, name: str) -> None:
        """Delete a link, and with it its addresses, its routes and the other end of a pair."""
        self.perform(link_del(name))

    def address_add(self, name: str, address: InterfaceAddress) -> None:
        """Give an interface an address, usable at once (no duplicate address detection)."""
        self.perform(address_add(self.link_index(name), name, address))

    def route_add_default(self, name: str, gateway: Address) -> None:
        """Add a default route over an interface to a gateway on its link."""
        self.perform(route_add_default(self.link_index(name), name, gateway))

    def links(self) -> list[Link]:
        """Return all links. The counters, most of every answer's bytes, are left out."""
        return [
            _link(answer)
            for answer in self._dump(Message(netlink.GETLINK, LinkHeader(), _BRIEF), "interfaces")
        ]

    def addresses(self, name: str) -> list[InterfaceAddress]:
        """Return the addresses of one interface."""
        index = self.link_index(name)
        found = self._dump(Message(netlink.GETADDR, AddressHeader()), "addresses")
        return [_interface_address(answer) for answer in found if _address_header(answer).ifindex == index]

    def default_gateways(self, name: str) -> list[Address]:
        """Return the gateways of the default routes over one interface."""
        index = self.link_index(name)
        return [
            answer.attributes["gateway"]
            for answer in self._dump(Message(netlink.GETROUTE, RouteHeader(table=0, kind=0)), "routes")
            if isinstance(answer.header, RouteHeader)
            and answer.header.dst_len == 0
            and answer.attributes.get("oif") == index
            and "gateway" in answer.attributes
        ]

    def perform(self, *requests: Request) -> None:
        """Send requests in one datagram and wait for all verdicts; raises KernelError for the first refusal."""
        self._exchange(requests)

    def _create(self, attributes: dict[str | int, Any], what: str, *, up: bool) -> None:
        flag = netlink.IFF_UP if up else 0
        header = LinkHeader(flags=flag, change=flag)
        self.perform(
            Request(
                Message(netlink.NEWLINK, header, attributes, netlink.CREATE | netlink.EXCL), "create", what
            )
        )

    def _exchange(self, requests: Iterable[Request]) -> _Answers:
        """Return what answers the requests, once every request has its verdict."""
        pending: dict[int, Request] = {}
        datagram = b""
        for request in requests:
            self._sequence += 1
            pending[self._sequence] = request
            flags = request.message.flags | netlink.REQUEST | netlink.ACK
            datagram += netlink.encode(replace(request.message, flags=flags, sequence=self._sequence))
        first = next(iter(pending.values()))
        self._send(datagram, first)
        answers = _Answers([], [])
        failures: list[KernelError] = []
        while pending:
            for answer in self._receive(first):
                if answer.sequence not in pending:
                    continue
                if isinstance(answer, Message):
                    answers.messages.append(answer)
                elif isinstance(answer, netlink.Acknowledgement):
                    answers.verdicts.append(answer)
                    request = pending.pop(answer.sequence)
                    if answer.errno:
                        failures.append(
                            KernelError(answer.errno, request.operation, request.object, answer.text)
                        )
        if failures:
            raise failures[0]
        return answers

    def _dump(self, message: Message, what: str) -> Iterator[Message]:
        self._sequence += 1
        request = Request(message, "list", what)
        self._send(
            netlink.encode(replace(message, flags=netlink.REQUEST | netlink.DUMP, sequence=self._sequence)),
            request,
        )
        while True:
            for answer in self._receive(request):
                if answer.sequence != self._sequence:
                    continue
                if isinstance(answer, Message):
                    yield answer
                    continue
                if answer.errno:
                    text = answer.text if isinstance(answer, netlink.Acknowledgement) else ""
                    raise KernelError(answer.errno, request.operation, request.object, text)
                return

    def _send(self, datagram: bytes, request: Request) -> None:
        try:
            self._sock.send(datagram)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, request.operation, request.object) from error

    def _receive(self, request: Request) -> list[Message | netlink.Acknowledgement | netlink.Done]:
        try:
            return netlink.decode(self._sock.recv(_BUFFER))
        except BlockingIOError as error:
            raise KernelError(errno.ETIMEDOUT, request.operation, request.object) from error
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, request.operation, request.object) from error


def _link(message: Message) -> Link:
    header, attributes = message.header, message.attributes
    if not isinstance(header, LinkHeader):
        raise MalformedMessageError(f"the kernel answered a question about links with {header}")
    return Link(
        name=attributes.get("name", ""),
        index=header.ifindex,
        kind=attributes.get("info", {}).get("kind", ""),
        mac=attributes.get("address", ""),
        mtu=attributes.get("mtu", 0),
        master=attributes.get("master", 0),
        up=bool(header.flags & netlink.IFF_UP),
        loopback=bool(header.flags & netlink.IFF_LOOPBACK),
        alias=attributes.get("alias", ""),
    )


def _address_header(message: Message) -> AddressHeader:
    if not isinstance(message.header, AddressHeader):
        raise MalformedMessageError(f"the kernel answered a question about addresses with {message.header}")
    return message.header


def _interface_address(message: Message) -> InterfaceAddress:
    # On a point-to-point link "address" is the other end's; "local", where there is one, is always ours.
    address: Address = message.attributes.get("local") or message.attributes["address"]
    return ip_interface((address, _address_header(message).prefixlen))
