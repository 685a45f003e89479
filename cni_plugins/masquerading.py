"""Masquerading as a part of a plugin: `masquerade` is nothing else, `bridge` and `ptp` have it as `ipMasq`.

Both in one list would translate a pod's addresses twice, and one of them without the other's exceptions: `refuse_two`.

Pods of one network know each other by their own addresses. While its configuration changes they are of several subnets, so
every pod's exceptions have the subnets of all the others: `_Neighbours`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import chain

from cni_plugins.errors import ConfigurationError
from cni_plugins.nat import Masquerade
from cni_plugins.plugin import Context, Request
from cni_plugins.settings import Settings
from cni_plugins.types import InterfaceAddress, Network, Result

MULTICAST: tuple[Network, ...] = (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8"))
"""What pods send to a group stays their own: a neighbour that hears it must know whom to answer."""


class Masquerading:
    """Translates pods' addresses to the node's, unless for their network's subnets, groups and exceptions."""

    def __init__(
        self, context: Context, exceptions: Sequence[Network] = (), versions: Collection[int] = (4, 6)
    ) -> None:
        self._context = context
        self._exceptions = tuple(exceptions)
        self._versions = versions

    def add(self, request: Request, result: Result) -> None:
        """Translate the addresses of a result, if there are any. Raises KernelError."""
        neighbours, nat = self._neighbours(), self._context.nat()
        neighbours.enter(request.owner, _subnets(result), self.wanted(result), nat.masquerade)
        wanted = neighbours.wanted(request.owner)
        while wanted is not None:
            nat.masquerade(request.owner, wanted)
            latest = neighbours.wanted(request.owner)  # somebody may have brought a new subnet meanwhile
            wanted = latest if latest != wanted else None

    def delete(self, request: Request) -> None:
        """Stop, and cut the pod's connections: their answers must not reach the next one that has its address."""
        nat = self._context.nat()
        self._neighbours().leave(request.owner)
        nat.unmasquerade(request.owner)
        wanted = self.wanted(request.previous)
        if wanted is not None:
            nat.kill_states(wanted.addresses)

    def gc(self, requests: Sequence[Request]) -> None:
        """Translate the addresses of all these that are ours, and no others."""
        neighbours = self._neighbours()
        neighbours.reset(
            {request.owner: _subnets(request.previous) for request in requests},
            {request.owner: self.wanted(request.previous) for request in requests if request.ours},
        )
        found = {request.owner: neighbours.wanted(request.owner) for request in requests if request.ours}
        self._context.nat().restore_masquerades({owner: one for owner, one in found.items() if one})

    def status(self) -> list[str]:
        """Return what keeps translations from taking effect."""
        return self._context.nat().problems()

    def wanted(self, result: Result) -> Masquerade | None:
        """Return what is to be translated for a pod, regardless of others; None if nothing is."""
        ours = [address for address in _pod_s(result) if address.version in self._versions]
        if not ours:
            return None
        families = {address.version for address in ours}
        exceptions = dict.fromkeys(
            (*(address.network for address in ours), *MULTICAST, *self._exceptions), None
        )
        return Masquerade(
            tuple(address.ip for address in ours), tuple(one for one in exceptions if one.version in families)
        )

    def _neighbours(self) -> _Neighbours:
        return self._context.ledger.index(f"subnets of network {self._context.network}", _Neighbours)


class _Neighbours:
    """The subnets of one network's pods, and what is translated for these. Safe for threads.

    It is of the process: the first `gc` tells it what there is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subnets: dict[str, frozenset[Network]] = {}
        self._pods: Counter[Network] = Counter()
        """How many pods each subnet has."""
        self._translated: dict[str, Masquerade] = {}

    def enter(
        self,
        owner: str,
        subnets: frozenset[Network],
        translated: Masquerade | None,
        change: Callable[[str, Masquerade], None],
    ) -> None:
        """Add a pod, and change what is translated for the others if it is the first one of a subnet.

        `change` is called under the lock, so that whoever leaves does so before it, or has it undone afterwards.
        """
        with self._lock:
            self._remove(owner)
            others = [*self._translated] if subnets - self._pods.keys() else []
            self._subnets[owner] = subnets
            self._pods.update(subnets)
            if translated is not None:
                self._translated[owner] = translated
            for other in others:
                if (wanted := self._wanted(other)) is not None:
                    change(other, wanted)

    def leave(self, owner: str) -> None:
        """Remove a pod. That the others' exceptions still have its subnet hurts nobody, until the next `gc`."""
        with self._lock:
            self._remove(owner)

    def reset(
        self, subnets: Mapping[str, frozenset[Network]], translated: Mapping[str, Masquerade | None]
    ) -> None:
        """Know these pods and no others, and what is translated for some of them."""
        with self._lock:
            self._subnets = dict(subnets)
            self._pods = Counter(chain.from_iterable(subnets.values()))
            kept = {owner: one for owner, one in self._translated.items() if owner in subnets}
            self._translated = {
                owner: one for owner, one in (kept | dict(translated)).items() if one is not None
            }

    def wanted(self, owner: str) -> Masquerade | None:
        """Return what is to be translated for a pod, with all its exceptions."""
        with self._lock:
            return self._wanted(owner)

    def _remove(self, owner: str) -> None:
        self._translated.pop(owner, None)
        for subnet in self._subnets.pop(owner, ()):
            self._pods[subnet] -= 1
            if not self._pods[subnet]:
                del self._pods[subnet]

    def _wanted(self, owner: str) -> Masquerade | None:
        own = self._translated.get(owner)
        if own is None:
            return None
        versions = {address.version for address in own.addresses}
        others = [one for one in self._pods.keys() - own.exceptions if one.version in versions]
        return replace(own, exceptions=(*own.exceptions, *sorted(others, key=str)))


def _pod_s(result: Result) -> list[InterfaceAddress]:
    """Return the addresses that a pod has, not the node."""
    return [
        ip.address
        for ip in result.ips
        if ip.interface is None
        or ip.interface >= len(result.interfaces)
        or result.interfaces[ip.interface].sandbox
    ]


def _subnets(result: Result) -> frozenset[Network]:
    return frozenset(address.network for address in _pod_s(result))


def refuse_two(plugins: Sequence[Settings]) -> None:
    """Raise ConfigurationError if more than one plugin of a list masquerades."""
    found = [each for each in plugins if each.type == "masquerade" or each.boolean("ipMasq")]
    if len(found) > 1:
        raise ConfigurationError(
            f"{found[1].where} and {found[0].where} both masquerade; remove one of them, or its ipMasq"
        )
