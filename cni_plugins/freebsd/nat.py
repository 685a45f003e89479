"""FreeBSD: masquerading and host ports in anchors of pf(4), which are all that is ever changed.

The anchors lie below `cni-rdr`, as those of podman and of the kube-proxy for FreeBSD do, so two lines of pf.conf(5) serve
everybody: `ANCHOR_LINES`. Each owner has up to two, one for its host ports and one for its masquerading; a change of one
is a transaction, so it happens as a whole, and an anchor without rules vanishes. Whose an anchor is can be told from its
name, so nothing needs to be remembered; what is, spares the work of loading again what is there already.

Rules of several anchors must never match the same packet. With FreeBSD 14 the first one would count, and with 15.1 the
last one, as a match ends only the search in its own anchor (pf_match_translation_rule() in sys/netpfil/pf/pf_lb.c). So
what came through a host port has a tag; rules for it ask for the tag, and masquerading passes over it.

Addresses are in rules and not in tables: the kernel lets go of a table, and of the anchor around it, only once the last
state is gone that a rule with the table has made.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network

from cni_plugins.errors import ConfigurationError, KernelError
from cni_plugins.freebsd.ioctl import Interfaces
from cni_plugins.freebsd.links import GROUP
from cni_plugins.freebsd.pf import (
    SELF,
    Action,
    Endpoint,
    LocalAddress,
    Pf,
    Rule,
    Version,
    filters_local,
    local_addresses,
)
from cni_plugins.nat import PROTOCOLS, HostPort, Masquerade
from cni_plugins.steps import all_of
from cni_plugins.types import Address, InterfaceAddress, SocketSource

PARENT = "cni-rdr"
ANCHOR_LINES = {f'nat-anchor "{PARENT}/*"': Action.NAT, f'rdr-anchor "{PARENT}/*"': Action.RDR}
"""What pf.conf(5) must have, and the rulesets that it is for."""

TAG = "cni-host-port"
"""On packets that came through a host port, from the redirection until they leave."""

_LOOPBACK = "lo0"
_PORTS, _MASQUERADE = "ports", "masquerade"
_PROXY_PORTS = 50001, 65535
"""What source ports become: those that pfctl(8) takes, too."""

_MULTICAST = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}
_FROM_LOOPBACK = {4: (ip_network("127.0.0.0/8"),), 6: ()}
"""Sources that a pod cannot answer to. The kernel never forwards a packet from ::1, translated or not."""

_LONGEST_NETWORK = 19
_FILTER_LOCAL = (
    "net.pf.filter_local is off, so host ports do not answer to the node itself: put pf_load=YES in /boot/loader.conf and "
    "net.pf.filter_local=1 in /etc/sysctl.conf, which is read before pf is loaded otherwise; for now, run "
    "`sysctl net.pf.filter_local=1` and, as pf looks at it when it is enabled, `pfctl -d; pfctl -e`"
)
_SKIPPED = (
    f"pf.conf has `set skip` for {_LOOPBACK}, so host ports do not answer to the node itself: have `pass quick on "
    f"{_LOOPBACK}` instead, and run `service pf reload`"
)


class PfNat:
    """`nat.Nat` for FreeBSD, in the network stack of the calling process: /dev/pf reaches no other.

    Masquerading is told at the time of the call which interfaces there are; those that get their first address later
    have it with the next `restore_masquerades`. The addresses themselves are looked up for each packet.
    """

    def __init__(self, host: SocketSource, network: str) -> None:
        self._host = host
        self._network = _short(network)
        self._loaded: dict[str, tuple[Sequence[Rule], Version]] = {}

    def publish(self, owner: str, ports: Sequence[HostPort]) -> None:
        """See `nat.Nat`."""
        rules = port_rules(owner, ports, local_addresses())
        with Pf() as pf:
            self._replace(pf, self._anchor(_PORTS, owner), rules)

    def withdraw(self, owner: str) -> None:
        """See `nat.Nat`."""
        self._clear(_PORTS, owner)

    def masquerade(self, owner: str, wanted: Masquerade) -> None:
        """See `nat.Nat`."""
        rules = masquerade_rules(owner, wanted, self._outside())
        with Pf() as pf:
            self._replace(pf, self._anchor(_MASQUERADE, owner), rules)

    def unmasquerade(self, owner: str) -> None:
        """See `nat.Nat`."""
        self._clear(_MASQUERADE, owner)

    def restore_ports(self, wanted: Mapping[str, Sequence[HostPort]]) -> None:
        """See `nat.Nat`."""
        local = local_addresses()
        self._restore(_PORTS, {owner: port_rules(owner, ports, local) for owner, ports in wanted.items()})

    def restore_masquerades(self, wanted: Mapping[str, Masquerade]) -> None:
        """See `nat.Nat`."""
        outside = self._outside()
        self._restore(
            _MASQUERADE, {owner: masquerade_rules(owner, each, outside) for owner, each in wanted.items()}
        )

    def kill_states(self, addresses: Sequence[Address]) -> None:
        """See `nat.Nat`."""
        if (opened := _open()) is not None:
            with opened as pf:
                for address in addresses:
                    pf.kill_states(address)

    def missing(self, owner: str) -> list[str]:
        """See `nat.Nat`. An anchor that has been changed since is missing as a whole."""
        loaded = {
            anchor: self._loaded[anchor][1]
            for anchor in (self._anchor(kind, owner) for kind in (_PORTS, _MASQUERADE))
            if anchor in self._loaded
        }
        if (opened := _open()) is None:
            return [f"anchor {anchor}" for anchor in loaded]
        with opened as pf:
            return [f"anchor {anchor}" for anchor, version in loaded.items() if pf.version(anchor) != version]

    def lost(self) -> list[str]:
        """See `nat.Nat`. An anchor without rules vanishes, so one that is there has some."""
        loaded = sorted(self._loaded)
        if not loaded:
            return []
        if (opened := _open()) is None:
            return [f"pf is not there, and {len(loaded)} anchors with it"]
        with opened as pf:
            there = {f"{PARENT}/{name}" for name in pf.anchors(PARENT)}
        # Those that were taken back meanwhile are not lost.
        return [
            f"anchor {anchor} is not there"
            for anchor in loaded
            if anchor not in there and anchor in self._loaded
        ]

    def problems(self) -> list[str]:
        """See `nat.Nat`. What only the node's own connections suffer from (`host_problems`) is the doctor's to tell."""
        try:
            with Pf() as pf:
                return problems(pf)
        except KernelError as error:
            if error.operation != "open":
                raise
            return [f"{error}, then `sysrc pf_enable=YES` and `service pf start`"]

    def _anchor(self, kind: str, owner: str) -> str:
        return f"{PARENT}/{kind}-{self._network}-{hashlib.sha256(owner.encode()).hexdigest()[:32]}"

    def _clear(self, kind: str, owner: str) -> None:
        if (opened := _open()) is not None:
            with opened as pf:
                anchor = self._anchor(kind, owner)
                # To empty one makes it first, and pf may have no room for another (`set limit anchors`).
                if pf.version(anchor) is not None:
                    self._replace(pf, anchor, ())
                else:
                    self._loaded.pop(anchor, None)

    def _restore(self, kind: str, wanted: Mapping[str, Sequence[Rule]]) -> None:
        if (opened := _open(needed=bool(wanted))) is None:
            return
        anchors = {self._anchor(kind, owner): rules for owner, rules in wanted.items()}
        with opened as pf:
            stray = dict.fromkeys(self._present(pf, kind) - anchors.keys(), ())
            all_of(
                partial(self._replace, pf, anchor, rules)
                for anchor, rules in {**stray, **anchors}.items()
                if not rules or self._loaded.get(anchor) != (rules, pf.version(anchor))
            )

    def _replace(self, pf: Pf, anchor: str, rules: Sequence[Rule]) -> None:
        before, _ = self._loaded.get(anchor, ((), None))
        version = pf.replace(anchor, rules)
        try:
            _forget_untranslated(pf, rules)
        except BaseException as error:  # the states that must end are those of after the change
            _take_back(pf, anchor, before, error)
            raise
        if rules:
            self._loaded[anchor] = rules, version
        else:
            self._loaded.pop(anchor, None)

    def _present(self, pf: Pf, kind: str) -> set[str]:
        ours = re.compile(rf"{kind}-{re.escape(self._network)}-[0-9a-f]{{32}}")
        return {f"{PARENT}/{name}" for name in pf.anchors(PARENT) if ours.fullmatch(name)}

    def _outside(self) -> list[LocalAddress]:
        """Return the addresses of interfaces that packets of pods may leave by."""
        with Interfaces.of(self._host) as interfaces:
            pods = interfaces.group(GROUP)
        return [each for each in _usable(local_addresses()) if each.interface not in pods]


def problems(pf: Pf) -> list[str]:
    """Return what keeps translations of every network from taking effect; see `nat.Nat`."""
    found = [] if pf.running() else ["pf is not enabled: run `sysrc pf_enable=YES` and `service pf start`"]
    return found + [
        f"pf.conf has no line `{line}`: add it after the options and before all filter rules, and run `service pf reload`"
        for line in missing_lines(pf)
    ]


def host_problems(pf: Pf) -> list[str]:
    """Return what keeps the node itself from its host ports."""
    return [*(() if filters_local() else (_FILTER_LOCAL,)), *((_SKIPPED,) if pf.skips(_LOOPBACK) else ())]


def missing_lines(pf: Pf) -> list[str]:
    """Return those of `ANCHOR_LINES` that the loaded main ruleset does not have."""
    return [line for line, action in ANCHOR_LINES.items() if not _reaches_parent(pf.called_anchors(action))]


def port_rules(owner: str, ports: Sequence[HostPort], local: Sequence[LocalAddress]) -> list[Rule]:
    """Return the rules for an owner's host ports. Raises ConfigurationError."""
    _check(ports)
    redirections = [_redirection(owner, port) for port in ports]
    # Two host ports may lead to one port of a pod; the kernel takes no two rules alike.
    return list(
        dict.fromkeys([*redirections, *(rule for port in ports for rule in _returns(owner, port, local))])
    )


def masquerade_rules(owner: str, wanted: Masquerade, outside: Sequence[LocalAddress]) -> list[Rule]:
    """Return the rules that translate an owner's addresses to those of the interface that a packet leaves by."""
    inside = {_link_of(address, outside) for address in wanted.addresses}
    interfaces: dict[int, dict[str, None]] = defaultdict(dict)
    for each in outside:
        if each.interface not in inside:
            interfaces[each.address.version][each.interface] = None
    rules = []
    for address in wanted.addresses:
        version = address.version
        source = ip_network(address)
        exceptions = (*wanted.exceptions, _MULTICAST[version])
        rules += [
            Rule(Action.NO_NAT, version, source=source, destination=exception, not_tagged=TAG, label=owner)
            for exception in exceptions
            if exception.version == version
        ]
        rules += [
            Rule(
                Action.NAT,
                version,
                interface=interface,
                source=source,
                target=interface,
                target_ports=_PROXY_PORTS,
                not_tagged=TAG,
                label=owner,
            )
            for interface in interfaces[version]
        ]
    return list(dict.fromkeys(rules))


def _forget_untranslated(pf: Pf, rules: Iterable[Rule]) -> None:
    """End UDP states from before there was a redirection: a client that went on sending would never get to the pod."""
    for rule in rules:
        if rule.action is Action.RDR and rule.protocol == "udp":
            for address in _own(rule.destination, rule.version):
                pf.kill_states_to(address, rule.protocol, rule.port)


def _take_back(pf: Pf, anchor: str, rules: Sequence[Rule], error: BaseException) -> None:
    """Have an anchor's former rules again because of an error, which stays the one that the caller hears of."""
    try:
        pf.replace(anchor, rules)
    except KernelError as second:
        error.add_note(f"and the undo failed: {second}")


def _own(destination: Endpoint, version: int) -> list[Address]:
    if isinstance(destination, (IPv4Network, IPv6Network)):
        return [destination.network_address]
    return [each.address.ip for each in _usable(local_addresses()) if each.address.version == version]


def _redirection(owner: str, port: HostPort) -> Rule:
    return Rule(
        Action.RDR,
        port.pod.version,
        protocol=port.protocol,
        destination=SELF if port.host_ip is None else ip_network(port.host_ip),
        port=port.host_port,
        target=port.pod.ip,
        target_ports=(port.pod_port, 0),
        passes=True,
        tag=TAG,
        label=owner,
    )


def _returns(owner: str, port: HostPort, local: Iterable[LocalAddress]) -> Iterator[Rule]:
    """The rules by which answers come back through the node that would else go past it, or nowhere."""
    node = _nearest(port.pod, local)
    if node is None:
        return
    version = port.pod.version
    for source in (None,) if port.masquerade_all else (port.pod.network, *_FROM_LOOPBACK[version]):
        yield Rule(
            Action.NAT,
            version,
            protocol=port.protocol,
            source=source,
            destination=ip_network(port.pod.ip),
            port=port.pod_port,
            target=node,
            target_ports=_PROXY_PORTS,
            tagged=TAG,
            label=owner,
        )


def _nearest(pod: InterfaceAddress, local: Iterable[LocalAddress]) -> Address | None:
    """Return the node's address on the pod's link or, where that has none, another one."""
    usable = [each for each in _usable(local) if each.address.version == pod.version]
    usable.sort(key=lambda each: (_contains(each, pod.ip), each.address.network.prefixlen), reverse=True)
    return usable[0].address.ip if usable else None


def _link_of(pod: Address, local: Iterable[LocalAddress]) -> str:
    """Return the interface of the node that a pod is reached by: the node may also be in a wider network around it."""
    near = [each for each in local if _contains(each, pod)]
    return max(near, key=lambda each: each.address.network.prefixlen).interface if near else ""


def _usable(local: Iterable[LocalAddress]) -> list[LocalAddress]:
    return [each for each in local if not each.loopback and not each.address.ip.is_link_local]


def _contains(local: LocalAddress, address: Address) -> bool:
    return address in local.address.network


def _check(ports: Sequence[HostPort]) -> None:
    targets: dict[object, HostPort] = {}
    for port in ports:
        if port.protocol not in PROTOCOLS:
            raise ConfigurationError(
                f"host port {port.host_port}: {port.protocol!r} is none of {', '.join(PROTOCOLS)}"
            )
        where = f"host port {port.host_port}/{port.protocol}"
        if not (0 < port.host_port < 65536 and 0 < port.pod_port < 65536):
            raise ConfigurationError(f"{where} to port {port.pod_port}: ports are between 1 and 65535")
        if port.host_ip is not None and port.host_ip.version != port.pod.version:
            raise ConfigurationError(
                f"{where} on {port.host_ip}: the pod's {port.pod.ip} is of the other family"
            )
        if port.protocol == "sctp" and port.host_port != port.pod_port:
            raise ConfigurationError(
                f"{where} to port {port.pod_port}: pf does not change SCTP's ports; take the same"
            )
        key = port.pod.version, port.protocol, port.host_ip, port.host_port
        other = targets.setdefault(key, port)
        if (other.pod.ip, other.pod_port) != (port.pod.ip, port.pod_port):
            raise ConfigurationError(
                f"{where} to {port.pod.ip} port {port.pod_port}: it leads to {other.pod.ip} port {other.pod_port} already"
            )


def _open(*, needed: bool = False) -> Pf | None:
    """Open /dev/pf. Where there is none, there are no rules and no states either: None, unless it is needed."""
    try:
        return Pf()
    except KernelError as error:
        if error.errno == errno.ENOENT and not needed:
            return None
        raise


def _reaches_parent(called: Iterable[str]) -> bool:
    return any(path.removeprefix("/") == f"{PARENT}/*" for path in called)


def _short(network: str) -> str:
    """Return a name for a part of an anchor's: the network's own if it can be."""
    if len(network) <= _LONGEST_NETWORK and re.fullmatch(r"[A-Za-z0-9._-]+", network):
        return network
    readable = re.sub(r"[^A-Za-z0-9._]", "", network)[:10]
    return f"{readable}-{hashlib.sha256(network.encode()).hexdigest()[:8]}"
