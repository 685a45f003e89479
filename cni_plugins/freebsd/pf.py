"""FreeBSD: pf(4) by ioctl(2) on /dev/pf, without pfctl(8): anchors, their translation rules, and states.

A process reaches the pf of the network stack that it is in itself. Sources: pf(4), pf.conf(5), sys/netpfil/pf/pf_ioctl.c and
pf_ruleset.c of FreeBSD 15.1.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address, ip_interface, ip_network
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeAlias

from cni_plugins.errors import KernelError
from cni_plugins.freebsd._pf import ffi, lib
from cni_plugins.types import Address, InterfaceAddress, Network

DEVICE = "/dev/pf"
SELF = "self"
"""As an endpoint: all addresses of all interfaces, as they are when a packet comes."""

_RULESETS = (lib.PF_RULESET_NAT, lib.PF_RULESET_RDR)
"""Those that an anchor of translations has."""
_NO_RULESET_OF_OURS = (lib.PF_RULESET_SCRUB,)
_NO_SUCH_ANCHOR = frozenset({errno.ENOENT, errno.EINVAL})  # calls and releases differ about it
_PROTOCOLS = {"": 0, "tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_NAME_BYTES = 64
_PATH_BYTES = 1024
_BEGIN = "begin a change of"
_WORDS = {
    (_BEGIN, errno.EINVAL): "pf may have no room for another anchor, see `set limit anchors` in pf.conf(5)",
    (_BEGIN, errno.EPERM): "kern.securelevel is above 2, or this is a jail that may not",
    (_BEGIN, errno.EBUSY): "somebody else changes rules all the time",
}
"""What pf means by some of its errors."""
_MOST_LOOKS = 10
"""At what others may be changing all the time."""
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, *(0.05,) * 35)
"""Seconds, at most, before another attempt where somebody else was in the way."""


# What the next rule translates to goes into the one buffer that there is; threads would empty each other's.
_changing = Lock()


class Action(IntEnum):
    """What a rule does with the packets that it matches."""

    NAT = lib.PF_NAT
    NO_NAT = lib.PF_NONAT
    RDR = lib.PF_RDR


_ACTIONS = (Action.NAT, Action.RDR)  # one of each of _RULESETS

Version: TypeAlias = tuple[tuple[int, int], ...]
"""Of each ruleset of an anchor: the number of its last change, and the number of its rules."""

Endpoint: TypeAlias = Network | str | None
"""Addresses that a packet is from or to: a network, an interface's at the time (or `SELF`), or any."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A translation rule of pf.conf(5); what is empty, zero or None matches everything."""

    action: Action
    version: int
    """4 or 6."""
    protocol: str = ""
    interface: str = ""
    source: Endpoint = None
    destination: Endpoint = None
    port: int = 0
    """Of the destination."""
    target: Address | str | None = None
    """What the address becomes: this one, or the first one that an interface has at the time."""
    target_ports: tuple[int, int] = (0, 0)
    """`RDR`: the port that it becomes, and 0. `NAT`: the first and the last of those that the source's becomes."""
    passes: bool = False
    """Filter rules are not asked about the packet, on the interface where it is translated."""
    tag: str = ""
    """Put on the packet, which keeps it until it has left."""
    tagged: str = ""
    not_tagged: str = ""
    label: str = ""
    """Shown by `pfctl -v`; at most 63 bytes of it."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this host."""

    interface: str
    address: InterfaceAddress
    loopback: bool


class Pf:
    """An open /dev/pf: use it as a context manager. Every method blocks and raises KernelError."""

    def __init__(self) -> None:
        """Open the device. ENOENT if the module is not loaded, or the device is not in a jail's devfs(5)."""
        try:
            self._descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            text = "run kldload pf" if error.errno == errno.ENOENT else ""
            raise KernelError(error.errno or errno.EIO, "open", DEVICE, text) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def replace(self, anchor: str, rules: Sequence[Rule]) -> Version:
        """Make rules the translation rules of an anchor, all at once or, if that fails, none of them.

        An anchor without rules vanishes. Two rules alike are refused with EEXIST. Whoever else changes rules at the same
        time makes the kernel refuse ours; then they are tried again, for a second or two.
        """
        with _changing:
            pauses = iter(_PAUSES)
            while True:
                try:
                    return self._replace(anchor, rules)
                except KernelError as error:
                    pause = next(pauses, None)
                    if error.errno != errno.EBUSY or pause is None:
                        raise
                time.sleep(random.uniform(0, pause))  # noqa: S311 - no secret

    def version(self, anchor: str) -> Version | None:
        """Return what `replace` has returned if nobody has changed the anchor since; None if there is none."""
        try:
            return tuple(self._count(anchor, action) for action in _ACTIONS)
        except KernelError as error:
            if error.errno in _NO_SUCH_ANCHOR:
                return None
            raise

    def anchors(self, parent: str) -> list[str]:
        """Return the names of the anchors directly below one; none if that does not exist itself."""
        # They are told one by one, by their place, which changes when another one comes or goes.
        names = self._anchor_names(parent)
        seen = set(names)
        for _ in range(_MOST_LOOKS):
            if (again := self._anchor_names(parent)) == names:
                return names
            names = again
            seen.update(names)
        return sorted(seen)  # somebody is busy there; what was there once is looked for in vain at worst

    def called_anchors(self, action: Action) -> list[str]:
        """Return the anchors that the main ruleset's rules of an action's kind call, as `name/*` if with all below."""
        for _ in range(_MOST_LOOKS):
            try:
                return self._called_anchors(action)
            except KernelError as error:
                if error.errno != errno.EBUSY:  # another ruleset was loaded meanwhile
                    raise
        return self._called_anchors(action)

    def kill_states(self, address: Address) -> None:
        """End all states from and to an address, those with a translated address too."""
        self._kill_states(address, as_destination=False)
        self._kill_states(address, as_destination=True)

    def kill_states_to(self, address: Address, protocol: str, port: int) -> None:
        """End all states of a protocol to a port of an address, unless they are translated to something else."""
        self._kill_states(address, as_destination=True, protocol=protocol, port=port)

    def running(self) -> bool:
        """Whether packets pass through pf at all."""
        return bool(self._call(lib.cni_pf_running, "ask the status of", DEVICE))

    def skips(self, interface: str) -> bool:
        """Whether packets on an interface pass by pf: `set skip` of pf.conf(5)."""
        return bool(
            self._call(lib.cni_pf_skips, "ask about", f"interface {interface}", os.fsencode(interface))
        )

    def _replace(self, anchor: str, rules: Sequence[Rule]) -> Version:
        numbers = [int(rule.action is Action.RDR) for rule in rules]
        with self._transaction(anchor, _RULESETS) as tickets:
            for rule, number in zip(rules, numbers, strict=True):
                self._add(anchor, tickets[number], rule)
        return tuple((tickets[number], numbers.count(number)) for number in range(len(_RULESETS)))

    def _add(self, anchor: str, ticket: int, rule: Rule) -> None:
        what = f"anchor {anchor}"
        pool = ffi.new("uint32_t *")
        self._call(lib.cni_pf_begin_pool, "add a rule to", what, pool)
        if rule.target is not None:
            target = rule.target if isinstance(rule.target, str) else ip_network(rule.target)
            address = _endpoint(target, first=True)
            self._call(lib.cni_pf_add_to_pool, "add a rule to", what, pool[0], _family(rule.version), address)
        self._call(lib.cni_pf_add_rule, "add a rule to", what, anchor.encode(), ticket, pool[0], _rule(rule))

    @contextmanager
    def _transaction(self, anchor: str, rulesets: Sequence[int]) -> Iterator[Any]:
        """Change some of an anchor's rulesets, of which nothing stays that is not added meanwhile."""
        what, name = f"anchor {anchor}", anchor.encode()
        numbers, count = ffi.new("int[]", list(rulesets)), len(rulesets)
        tickets = ffi.new("uint32_t[]", count)
        self._call(lib.cni_pf_begin, _BEGIN, what, name, numbers, tickets, count)
        try:
            yield tickets
            self._call(lib.cni_pf_commit, "change", what, name, numbers, tickets, count)
        except BaseException as error:
            try:
                self._call(lib.cni_pf_rollback, "take back a change of", what, name, numbers, tickets, count)
                if rulesets != _NO_RULESET_OF_OURS:
                    self._remove_if_empty(anchor)
            except KernelError as second:
                error.add_note(f"and the undo failed: {second}")
            raise

    def _remove_if_empty(self, anchor: str) -> None:
        """Have an anchor removed that a change which was taken back has made.

        The kernel looks at the end of changes only whether an anchor has become empty, so this is one, of nothing.
        """
        with self._transaction(anchor, _NO_RULESET_OF_OURS):
            pass

    def _kill_states(
        self, address: Address, *, as_destination: bool, protocol: str = "", port: int = 0
    ) -> None:
        self._call(
            lib.cni_pf_kill_states,
            "end states of",
            str(address),
            _family(address.version),
            _endpoint(ip_network(address)),
            as_destination,
            _PROTOCOLS[protocol],
            port,
        )

    def _anchor_count(self, parent: str) -> int:
        try:
            return self._call(lib.cni_pf_count_anchors, "list", f"anchors in {parent}", parent.encode())
        except KernelError as error:
            if error.errno in _NO_SUCH_ANCHOR:
                return 0
            raise

    def _anchor_names(self, parent: str) -> list[str]:
        names = []
        for number in range(self._anchor_count(parent)):
            name = ffi.new(f"char[{_NAME_BYTES}]")
            try:
                self._call(
                    lib.cni_pf_anchor_name, "list", f"anchors in {parent}", parent.encode(), number, name
                )
            except KernelError as error:
                if error.errno != errno.EBUSY and error.errno not in _NO_SUCH_ANCHOR:
                    raise
                break  # there are fewer by now
            names.append(os.fsdecode(ffi.string(name)))
        return names

    def _called_anchors(self, action: Action) -> list[str]:
        ticket, count = self._count("", action)
        called = []
        for number in range(count):
            path = ffi.new(f"char[{_PATH_BYTES}]")
            where = action, ticket, number, path, _PATH_BYTES
            if self._call(lib.cni_pf_called_anchor, "read", "the main ruleset", *where):
                called.append(os.fsdecode(ffi.string(path)))
        return called

    def _count(self, anchor: str, action: Action) -> tuple[int, int]:
        """Return the ticket of an anchor's rules of an action's kind, and their number."""
        ticket = ffi.new("uint32_t *")
        what = f"anchor {anchor}" if anchor else "the main ruleset"
        count = self._call(lib.cni_pf_count_rules, "read", what, anchor.encode(), action, ticket)
        return ticket[0], count

    def _call(self, function: Callable[..., int], operation: str, what: str, *arguments: Any) -> int:
        result = function(self._descriptor, *arguments)
        if result < 0:
            raise KernelError(ffi.errno, operation, what, _WORDS.get((operation, ffi.errno), ""))
        return result


def filters_local() -> bool:
    """Whether pf, when it is enabled, gets to see what is delivered to the host itself: sysctl net.pf.filter_local."""
    result = lib.cni_pf_filters_local()
    if result < 0:
        if ffi.errno == errno.ENOENT:  # no pf, or one that cannot
            return False
        raise KernelError(ffi.errno, "read", "net.pf.filter_local")
    return bool(result)


def local_addresses() -> list[LocalAddress]:
    """Return the addresses of all interfaces of the caller's network stack, getifaddrs(3)."""
    room = 256
    while True:
        found = ffi.new("cni_pf_local[]", room)
        count = lib.cni_pf_local_addresses(found, room)
        if count < 0:
            raise KernelError(ffi.errno, "list", "the host's addresses")
        if count <= room:
            return [_local(each) for each in found[0:count]]
        room = 2 * count


def _local(found: Any) -> LocalAddress:
    packed = bytes(found.bytes)[: 16 if found.family == socket.AF_INET6 else 4]
    address = ip_interface((ip_address(packed), found.prefix))
    return LocalAddress(os.fsdecode(ffi.string(found.interface)), address, bool(found.loopback))


def _family(version: int) -> int:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _endpoint(endpoint: Endpoint, *, first: bool = False) -> Any:
    made = ffi.new("cni_pf_address *", {"kind": lib.CNI_PF_ANY})
    if isinstance(endpoint, str):
        made.kind, made.interface, made.first = lib.CNI_PF_INTERFACE, os.fsencode(endpoint), first
    elif endpoint is not None:
        made.kind, made.prefix = lib.CNI_PF_NETWORK, endpoint.prefixlen
        packed = endpoint.network_address.packed
        ffi.memmove(made.bytes, packed, len(packed))
    return made


def _rule(rule: Rule) -> Any:
    return ffi.new(
        "cni_pf_rule *",
        {
            "action": rule.action,
            "family": _family(rule.version),
            "protocol": _PROTOCOLS[rule.protocol],
            "pass": rule.passes,
            "interface": os.fsencode(rule.interface),
            "from": _endpoint(rule.source)[0],
            "to": _endpoint(rule.destination)[0],
            "to_port": rule.port,
            "tag": rule.tag.encode(),
            "tagged": (rule.tagged or rule.not_tagged).encode(),
            "not_tagged": bool(rule.not_tagged),
            "label": rule.label.encode()[: _NAME_BYTES - 1],
            "ports": rule.target_ports,
        },
    )
