"""Links, addresses and routes of one network stack, over one blocking route-netlink socket.

Several requests may go to the kernel in one datagram: it works them off in order and acknowledges each. It
does not stop at one that it refuses, so only requests that hurt nobody after a refusal travel together.

Sources: rtnetlink(7); linux/rtnetlink.h; net/core/rtnetlink.c of Linux for what one NEWLINK may carry.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Self

from cni_plugins import netlink
from cni_plugins.errors import KernelError, MalformedMessageError
from cni_plugins.netlink import AddressHeader, LinkHeader, Message, RouteHeader
from cni_plugins.netlink.client import NETLINK_ROUTE, Client, Request
from cni_plugins.netlink.route import DIALECT, GETNETCONF, NETCONF_ALL, NetconfHeader
from cni_plugins.types import Address, InterfaceAddress, Route, SocketSource

GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOENT})
"""What kernels say of an interface that is not there; FreeBSD's netlink and ioctls differ about it."""

_BRIEF: dict[str | int, Any] = {"ext_mask": netlink.RTEXT_FILTER_SKIP_STATS}  # FreeBSD passes over it
_FLAGS = {"up": netlink.IFF_UP, "promiscuous": netlink.IFF_PROMISC, "all_multicast": netlink.IFF_ALLMULTI}


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
    promiscuous: bool = False
    all_multicast: bool = False
    tx_queue_length: int = 0


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of a veth pair that is to be made."""

    name: str
    mac: str


def link_set(name: str, **changes: Any) -> Request:
    """Return the request to change a link, found by its name.

    The changes are up, promiscuous and all_multicast (bool), mac, mtu, master (an index) and the others that
    `netlink.LINK` has.
    """
    # FreeBSD takes an empty mask for a full one, and then the link goes down; this flag is the kernel's to set.
    flags, change = 0, netlink.IFF_RUNNING
    attributes: dict[str | int, Any] = {"name": name}
    for key, value in changes.items():
        if key in _FLAGS:
            change |= _FLAGS[key]
            flags |= _FLAGS[key] if value else 0
        else:
            attributes["address" if key == "mac" else key] = value
    header = LinkHeader(flags=flags, change=change)
    return Request(Message(netlink.NEWLINK, header, attributes), "change", f"interface {name}")


def link_del(name: str, index: int = 0) -> Request:
    """Return the request to delete a link, found by its index if that is given, and else by its name."""
    attributes: dict[str | int, Any] = {} if index else {"name": name}
    message = Message(netlink.DELLINK, LinkHeader(ifindex=index), attributes)
    return Request(message, "delete", f"interface {name}")


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
        netlink.NEWADDR, _address_header(index, address), attributes, netlink.CREATE | netlink.EXCL
    )
    return Request(message, f"add address {address} to", f"interface {name}")


def address_del(index: int, name: str, address: InterfaceAddress) -> Request:
    """Return the request to take an address from an interface."""
    attributes: dict[str | int, Any] = {"local": address.ip, "address": address.ip}
    message = Message(netlink.DELADDR, _address_header(index, address), attributes)
    return Request(message, f"take address {address} from", f"interface {name}")


def route_add(index: int, name: str, route: Route) -> Request:
    """Return the request for a route over an interface: to a gateway on its link, or else to the link itself."""
    scope = route.scope
    if scope is None:  # as ip-route(8) would have it
        scope = netlink.RT_SCOPE_LINK if route.gw is None and route.dst.version == 4 else 0
    table = netlink.RT_TABLE_MAIN if route.table is None else route.table
    header = RouteHeader(
        _family(route.dst.version), route.dst.prefixlen, table=table if table < 256 else 0, scope=scope
    )
    # The destination of a default route is what Linux would assume; FreeBSD wants to be told.
    attributes: dict[str | int, Any] = {"dst": route.dst.network_address, "oif": index, "table": table}
    optional = {
        "gateway": route.gw,
        "priority": route.priority,
        "metrics": {
            key: value for key, value in (("mtu", route.mtu), ("advmss", route.advmss)) if value is not None
        },
    }
    attributes.update((key, value) for key, value in optional.items() if value is not None and value != {})
    what = f"route to {route.dst}" if route.dst.prefixlen else "default route"
    via = f" via {route.gw}" if route.gw else ""
    message = Message(netlink.NEWROUTE, header, attributes, netlink.CREATE | netlink.EXCL)
    return Request(message, f"add the {what}{via} on", f"interface {name}")


class Routes(Client):
    """A client for the links, addresses and routes of one stack; see `netlink.client.Client`."""

    def __init__(self, stack: SocketSource) -> None:
        super().__init__(stack, NETLINK_ROUTE, DIALECT)

    @classmethod
    def of(cls, stack: SocketSource) -> Self:
        """Return a client on a new socket made inside a stack."""
        return cls(stack)

    def perform(self, *requests: Request) -> None:
        """Send requests in one datagram and wait for all verdicts; raises KernelError for the first refusal."""
        self.ask(*requests)

    def link(self, name: str) -> Link:
        """Return one link; KernelError with ENODEV if there is none of that name."""
        message = Message(netlink.GETLINK, LinkHeader(), {"name": name, **_BRIEF})
        for answer in self.ask(Request(message, "find", f"interface {name}")):
            return _link(answer)
        raise KernelError(errno.ENODEV, "find", f"interface {name}", "no answer")

    def find(self, name: str) -> Link | None:
        """Return one link, None if there is none of that name."""
        try:
            return self.link(name)
        except KernelError as error:
            if error.errno in GONE:
                return None
            raise

    def link_index(self, name: str) -> int:
        """Return the index of a link, which is needed to name it in addresses and routes."""
        return self.link(name).index

    def link_add_veth(
        self, end: LinkEnd, peer: LinkEnd, peer_netns: int, *, mtu: int = 0, master: int = 0, up: bool = False
    ) -> None:
        """Make a veth pair in one request: this end here, perhaps up and in a bridge, the peer in another stack.

        `peer_netns` is an open descriptor of the peer's namespace, `master` the index of a bridge. The peer
        stays down: the kernel cannot bring it up before the pair is complete. EEXIST if either name is taken.
        """
        # One queue each: by default a veth gets a receive queue, with its sysfs entries, per possible CPU.
        shape: dict[str | int, Any] = {"tx_queues": 1, "rx_queues": 1}
        if mtu:
            shape["mtu"] = mtu
        far = {"name": peer.name, "address": peer.mac, "netns_fd": peer_netns, **shape}
        near: dict[str | int, Any] = {"name": end.name, "address": end.mac, **shape}
        near["info"] = {"kind": "veth", "data": {"peer": far}}
        if master:
            near["master"] = master
        self._create(near, f"veth pair {end.name} and {peer.name}", up=up)

    def link_add_bridge(self, name: str, mac: str, mtu: int = 0) -> None:
        """Make a bridge, down, with a fixed MAC: else it takes its members', and changes it when they leave."""
        attributes: dict[str | int, Any] = {"name": name, "address": mac, "info": {"kind": "bridge"}}
        if mtu:
            attributes["mtu"] = mtu
        self._create(attributes, f"bridge {name}", up=False)

    def link_create(self, kind: str, alias: str) -> str:
        """Make a link, down, under a name that the kernel chooses (FreeBSD), and return that name.

        In the same system call it gets an alias, so that it can be told from others however early its maker dies.
        Of an epair(4) the name and the alias are the first end's.
        """
        attributes: dict[str | int, Any] = {"name": kind, "alias": alias, "info": {"kind": kind}}
        header = LinkHeader(change=netlink.IFF_UP)
        message = Message(netlink.NEWLINK, header, attributes, netlink.CREATE | netlink.EXCL)
        verdicts = self.exchange(Request(message, "create", f"{kind} for {alias}")).verdicts
        name: str = netlink.LINK_COOKIE.decode(verdicts[0].cookie)["name"]
        return name

    def link_set(self, name: str, **changes: Any) -> None:
        """Change a link, see the function of that name."""
        self.perform(link_set(name, **changes))

    def link_del(self, name: str) -> None:
        """Delete a link, and with it its addresses, its routes and the other end of a pair."""
        self.perform(link_del(name))

    def address_add(self, name: str, address: InterfaceAddress) -> None:
        """Give an interface an address, usable at once (no duplicate address detection)."""
        self.perform(address_add(self.link_index(name), name, address))

    def route_add(self, name: str, route: Route) -> None:
        """Add a route over an interface."""
        self.perform(route_add(self.link_index(name), name, route))

    def links(self) -> list[Link]:
        """Return all links. The counters, most of every answer's bytes, are left out."""
        message = Message(netlink.GETLINK, LinkHeader(), _BRIEF)
        return [_link(answer) for answer in self.dump(Request(message, "list", "interfaces"))]

    def addresses(self, name: str) -> list[InterfaceAddress]:
        """Return the addresses of one interface."""
        return self.addresses_at(self.link_index(name))

    def addresses_at(self, index: int) -> list[InterfaceAddress]:
        """Return the addresses of the interface of an index."""
        return [address for at, address in self.all_addresses() if at == index]

    def all_addresses(self) -> Iterator[tuple[int, InterfaceAddress]]:
        """Yield every address with its interface's index."""
        message = Message(netlink.GETADDR, AddressHeader())
        for answer in self.dump(Request(message, "list", "addresses")):
            if isinstance(answer.header, AddressHeader):
                yield answer.header.ifindex, _interface_address(answer.header, answer.attributes)

    def routes(self, name: str) -> list[Route]:
        """Return the unicast routes over one interface, those that the kernel made by itself too, of all tables."""
        return self.routes_at(self.link_index(name))

    def routes_at(self, index: int) -> list[Route]:
        """Return the routes over the interface of an index, likewise."""
        return [route for at, route in self.all_routes() if at == index]

    def all_routes(self) -> Iterator[tuple[int, Route]]:
        """Yield every unicast route over one interface, with that one's index."""
        message = Message(netlink.GETROUTE, RouteHeader(table=0, kind=0))
        for answer in self.dump(Request(message, "list", "routes")):
            header, told = answer.header, answer.attributes
            if (
                isinstance(header, RouteHeader)
                and header.kind == netlink.RTN_UNICAST
                and header.family in (socket.AF_INET, socket.AF_INET6)
                and "oif" in told
            ):
                yield told["oif"], _route(header, told)

    def advertised_ways(self) -> set[int]:
        """Return the indexes of the interfaces that IPv6's default route leads over because of a router advertisement."""
        message = Message(netlink.GETROUTE, RouteHeader(socket.AF_INET6, table=0, kind=0))
        found: set[int] = set()
        for answer in self.dump(Request(message, "list", "IPv6 routes")):
            header, told = answer.header, answer.attributes
            if (
                isinstance(header, RouteHeader)
                and header.family == socket.AF_INET6
                and header.protocol == netlink.RTPROT_RA
                and not header.dst_len
                and "oif" in told
            ):
                found.add(told["oif"])
        return found

    def forwards(self, version: int) -> bool:
        """Tell whether the whole stack forwards packets of an IP version (Linux)."""
        header = NetconfHeader(_family(version))
        message = Message(GETNETCONF, header, {"ifindex": NETCONF_ALL})
        request = Request(message, "read", f"the forwarding of IPv{version}")
        return any(answer.attributes.get("forwarding") for answer in self.ask(request))

    def _create(self, attributes: dict[str | int, Any], what: str, *, up: bool) -> None:
        flag = netlink.IFF_UP if up else 0
        header = LinkHeader(flags=flag, change=flag)
        message = Message(netlink.NEWLINK, header, attributes, netlink.CREATE | netlink.EXCL)
        self.perform(Request(message, "create", what))


def _family(version: int) -> int:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _address_header(index: int, address: InterfaceAddress) -> AddressHeader:
    return AddressHeader(_family(address.version), address.network.prefixlen, ifindex=index)


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
        # Linux's flag does not tell of what is counted; FreeBSD has the count alone.
        promiscuous=bool(attributes.get("promiscuity") or header.flags & netlink.IFF_PROMISC),
        all_multicast=bool(header.flags & netlink.IFF_ALLMULTI),
        tx_queue_length=attributes.get("tx_queue_length", 0),
    )


def _interface_address(header: AddressHeader, attributes: netlink.Attributes) -> InterfaceAddress:
    # On a point-to-point link "address" is the other end's; "local", where there is one, is always ours.
    address: Address = attributes.get("local") or attributes["address"]
    return ip_interface((address, header.prefixlen))


def _route(header: RouteHeader, told: netlink.Attributes) -> Route:
    anywhere = ip_address("::" if header.family == socket.AF_INET6 else "0.0.0.0")
    metrics = told.get("metrics", {})
    return Route(
        ip_network((told.get("dst", anywhere), header.dst_len), strict=False),
        told.get("gateway"),
        mtu=metrics.get("mtu"),
        advmss=metrics.get("advmss"),
        priority=told.get("priority"),
        table=told.get("table", header.table),
        scope=header.scope,
    )
