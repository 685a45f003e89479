"""Limits on what passes a veth pair, on its host end, where the pod cannot change them.

What the pod receives leaves the host's end, so a token bucket there holds it back. What the pod sends arrives there, and
Linux has no queue for arrivals: a filter redirects all of it to an ifb device, whose own token bucket then lets it go on.
Policing arrivals instead would take no device, and drop what comes too fast, which TCP answers by sending far less than
the rate; a bucket delays it.

Sources: tc-tbf(8), tc-u32(8), tc-mirred(8), ip-link(8) for ifb.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any

from cni_plugins import netlink
from cni_plugins.common_links import perform_unless
from cni_plugins.errors import ConfigurationError, KernelError, NotAttachedError
from cni_plugins.linux import advertisements
from cni_plugins.netlink import LinkHeader, Message, traffic
from cni_plugins.netlink.client import NETLINK_ROUTE, Client, Request
from cni_plugins.netlink.traffic import RateSpec, TokenBucket, TrafficHeader
from cni_plugins.rtnetlink import GONE, Link, Routes, link_del, link_set
from cni_plugins.traffic import Limit
from cni_plugins.types import SocketSource

_LATENCY = 0.025
"""Seconds that a packet may wait in a bucket's queue beyond the burst, as in the reference plugin."""
_HEADER = 18
"""Bytes of an Ethernet header with a VLAN tag."""
_MOST = 0xFFFFFFFF
_BUCKET, _FILTER, _PRIORITY = 0x10000, 0x80000800, 1
"""Handles of ours: 1:0 as tc(8) shows it, and 800::800, the first that u32 gives."""


class LinuxTraffic:
    """`traffic.Traffic` for Linux."""

    def __init__(self, host: SocketSource) -> None:
        self._host = host

    def limit(self, name: str, *, departures: Limit | None, arrivals: Limit | None, ifb: str) -> Link | None:
        """See `traffic.Traffic`. The filter comes last: it must not lead to where there is no limit yet."""
        with Routes.of(self._host) as routes, self._client() as client:
            link = _found(routes, name)
            if departures is not None:
                _perform(client, _bucket(link, departures))
            if arrivals is None:
                return None
            device = self._device(routes, client, link, ifb)
            _perform(client, _bucket(device, arrivals))
            try:
                _perform(client, _ingress(link))
            except KernelError as error:
                if error.errno != errno.EEXIST:
                    raise
            _perform(client, _redirection(link, device))
            return device

    def unlimit(self, name: str) -> None:
        """See `traffic.Traffic`."""
        with Routes.of(self._host) as routes, self._client() as client:
            link = routes.find(name)
            if link is None:
                return
            for parent, handle in ((traffic.INGRESS, traffic.INGRESS_HANDLE), (traffic.ROOT, _BUCKET)):
                header = TrafficHeader(ifindex=link.index, handle=handle, parent=parent)
                try:
                    client.ask(Request(Message(traffic.DELQDISC, header), "unlimit", f"interface {name}"))
                except KernelError as error:
                    if error.errno not in {*GONE, errno.EINVAL}:  # EINVAL: there is one, and not ours
                        raise

    def removal(self, ifb: str) -> Callable[[], object] | None:
        """See `traffic.Traffic`. It waits for a grace period of RCU, about 20 ms, which deletes at one time share."""
        with Routes.of(self._host) as routes:
            link = routes.find(ifb)
        return partial(self._delete, link) if link is not None and link.kind == "ifb" else None

    def faults(self, name: str, *, departures: Limit | None, arrivals: Limit | None, ifb: str) -> list[str]:
        """See `traffic.Traffic`."""
        with Routes.of(self._host) as routes, self._client() as client:
            link = _found(routes, name)
            faults = [] if departures is None else _bucket_faults(client, link, departures)
            if arrivals is None:
                return faults
            device = routes.find(ifb)
            if device is None:
                return [*faults, f"ifb {ifb} is gone"]
            faults += _bucket_faults(client, device, arrivals)
            if device.index not in _redirections(client, link):
                faults.append(f"what arrives at {name} is not redirected to {ifb}")
            return faults

    def ifbs(self) -> list[str]:
        """See `traffic.Traffic`."""
        with Routes.of(self._host) as routes:
            return [link.name for link in routes.links() if link.kind == "ifb"]

    def _delete(self, device: Link) -> None:
        with Routes.of(self._host) as routes:
            perform_unless(routes, GONE, link_del(device.name, device.index))

    def _device(self, routes: Routes, client: Client, link: Link, name: str) -> Link:
        """Make the ifb for what arrives at a link, or return the one that this is led to already."""
        try:
            return self._make_ifb(routes, name, link.mtu)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
        device = routes.link(name)
        if device.kind != "ifb":
            raise ConfigurationError(
                f"interface {name} is no ifb; rename or remove it, as a pod's limits need one of that name"
            )
        if device.index not in _redirections(client, link):
            # It was an earlier attachment's of that name, and waits for its end.
            self._delete(device)
            return self._make_ifb(routes, name, link.mtu)
        if not device.up:
            self._bring_up(routes, name)
        return device

    def _make_ifb(self, routes: Routes, name: str, mtu: int) -> Link:
        attributes: dict[str | int, Any] = {"name": name, "mtu": mtu, "info": {"kind": "ifb"}}
        message = Message(netlink.NEWLINK, LinkHeader(), attributes, netlink.CREATE | netlink.EXCL)
        try:
            routes.perform(Request(message, "create", f"ifb {name}"))
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise _unsupported(error, "ifb") from error
            raise
        self._bring_up(routes, name)
        return routes.link(name)

    def _bring_up(self, routes: Routes, name: str) -> None:
        # Nothing of the host's own passes there: it needs no IPv6 address. Of one request, the kernel would do that last.
        advertisements.ignored_by_node(self._host, name)
        bare = link_set(name, families={"inet6": {"addr_gen_mode": netlink.ADDR_GEN_MODE_NONE}})
        routes.perform(bare, link_set(name, up=True))

    def _client(self) -> Client:
        return Client(self._host, NETLINK_ROUTE, traffic.DIALECT)


def _found(routes: Routes, name: str) -> Link:
    link = routes.find(name)
    if link is None:
        raise NotAttachedError(
            f"there is no interface {name} to limit; delete the attachment and add it again"
        )
    return link


def _bucket_options(link: Link, limit: Limit) -> dict[str, Any]:
    rate = limit.rate // 8
    # A packet that is bigger than the bucket would never pass.
    burst = max(limit.burst // 8, link.mtu + _HEADER)
    queue = min(int(rate * _LATENCY) + burst, _MOST)
    options: dict[str, Any] = {"parameters": TokenBucket(RateSpec(rate=min(rate, _MOST)), limit=queue)}
    if rate > _MOST:
        options["rate64"] = rate
    return {**options, "burst": burst}


def _bucket(link: Link, limit: Limit) -> Request:
    attributes: dict[str | int, Any] = {"kind": "tbf", "options": _bucket_options(link, limit)}
    header = TrafficHeader(ifindex=link.index, handle=_BUCKET, parent=traffic.ROOT)
    message = Message(traffic.NEWQDISC, header, attributes, netlink.CREATE | netlink.REPLACE)
    return Request(message, "limit the rate of", f"interface {link.name}")


def _bucket_faults(client: Client, link: Link, limit: Limit) -> list[str]:
    header = TrafficHeader(ifindex=link.index, handle=_BUCKET, parent=traffic.ROOT)
    message = Message(traffic.GETQDISC, header, flags=traffic.ECHO)
    request = Request(message, "look at the limit of", f"interface {link.name}")
    try:
        answers = client.ask(request)
    except KernelError as error:
        if error.errno not in {*GONE, errno.EINVAL}:
            raise
        answers = []
    wanted = _bucket_options(link, limit)
    for answer in answers:
        options = answer.attributes.get("options", {})
        present = options.get("parameters")
        if answer.attributes.get("kind") == "tbf" and isinstance(present, TokenBucket):
            same_rate = present.rate.rate == wanted["parameters"].rate.rate
            if same_rate and options.get("rate64") == wanted.get("rate64"):
                return []
            return [f"{link.name} is limited to {present.rate.rate * 8} bits per second, not {limit.rate}"]
    return [f"{link.name} has no limit"]


def _ingress(link: Link) -> Request:
    header = TrafficHeader(ifindex=link.index, handle=traffic.INGRESS_HANDLE, parent=traffic.INGRESS)
    message = Message(traffic.NEWQDISC, header, {"kind": "ingress"}, netlink.CREATE | netlink.EXCL)
    return Request(message, "look at the arrivals of", f"interface {link.name}")


def _redirection(link: Link, target: Link) -> Request:
    parameters = (0, 0, traffic.ACT_STOLEN, 0, 0, traffic.EGRESS_REDIRECT, target.index)
    actions = {"first": {"kind": "mirred", "options": {"parameters": parameters}}}
    attributes: dict[str | int, Any] = {
        "kind": "u32",  # matchall says it shorter, and is missing from some kernels
        "options": {"selector": traffic.EVERYTHING, "actions": actions},
    }
    header = TrafficHeader(
        ifindex=link.index,
        handle=_FILTER,
        parent=traffic.INGRESS_HANDLE,
        info=traffic.filter_info(_PRIORITY, traffic.ETH_P_ALL),
    )
    message = Message(traffic.NEWTFILTER, header, attributes, netlink.CREATE | netlink.REPLACE)
    return Request(message, f"redirect to {target.name} what arrives at", f"interface {link.name}")


def _redirections(client: Client, link: Link) -> set[int]:
    """Return the indexes of the links that what arrives at a link is redirected to."""
    header = TrafficHeader(ifindex=link.index, parent=traffic.INGRESS_HANDLE)
    request = Request(Message(traffic.GETTFILTER, header), "list the filters of", f"interface {link.name}")
    found = set()
    for answer in client.dump(request):
        options = answer.attributes.get("options", {})
        action = options.get("actions", {}).get("first", {}).get("options", {})
        if parameters := action.get("parameters"):
            found.add(parameters[-1])
    return found


def _perform(client: Client, request: Request) -> None:
    try:
        client.ask(request)
    except KernelError as error:
        # What the kernel answers to a discipline or a filter that it has not.
        if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):
            raise _unsupported(error, "sch_tbf, sch_ingress, cls_u32 and act_mirred") from error
        raise


def _unsupported(error: KernelError, modules: str) -> KernelError:
    text = ", ".join(filter(None, (error.text, f"it takes the modules {modules}")))
    return KernelError(error.errno, error.operation, error.object, text)
