"""What keeps the node in line with the ledger: GC over all networks, and the look whether it is necessary.

A configuration stays noted in the ledger beyond the last attachment that was made with it, until one GC has gone well
without any: only then nothing is left of it on the node, not even the tables of a network that has another name by now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import TypeAlias

from cni_plugins.chain import Chain, stand_in
from cni_plugins.chains import Chains, key_of
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import NetworkError, UnknownPluginError
from cni_plugins.known import Known, Reader
from cni_plugins.ledger import Entry, Ledger
from cni_plugins.plugin import Attachment, Plugin, Request
from cni_plugins.types import IPConfig, Result

log = logging.getLogger("cni_plugins")

_MADE_WITH = "made with "
_TWICE_SECONDS = 0.1  # between two looks that must agree: what is just being made or removed is not lost

_Lists: TypeAlias = dict[str, dict[str, NetworkList]]
"""Configurations by their name and key."""


class Upkeep:
    """The node against the ledger. The caller sees to it that nothing else happens during `bring_in_line`."""

    def __init__(self, ledger: Ledger, chains: Chains, reader: Reader) -> None:
        self._ledger = ledger
        self._chains = chains
        self._reader = reader
        self._asked: tuple[int, list[tuple[Plugin, list[Request]]]] = (-1, [])

    def note(self, network: NetworkList) -> None:
        """Remember a configuration before anything is made with it."""
        key = key_of(network)
        self._ledger.note(_note_name(key), key)

    def bring_in_line(
        self,
        entries: Sequence[Entry],
        networks: Iterable[NetworkList],
        spared: Mapping[str, Collection[str]],
        failures: list[NetworkError],
        *,
        shared: bool,
    ) -> None:
        """Ask every configuration about the attachments that there are; see `CNI.gc`."""
        used: _Lists = defaultdict(dict)
        known: dict[str, list[Known]] = defaultdict(list)
        for network in networks:
            used[network.name][key_of(network)] = network
        made_with: dict[str, NetworkList] = {}
        for entry in entries:
            one = self._reader.read(entry)
            if isinstance(one, NetworkError):  # it is spared, and what else it needs is not known
                failures.append(one)
                known[entry.network].append(Known(*stand_in(entry)))
            elif one.network is not None:
                made_with[one.made_with] = one.network
                known[one.network.name].append(one)
        for key, network in made_with.items():
            used[network.name][key] = network
            self.note(network)
        past = self._past({name: used.get(name, {}) for name in used.keys() | known.keys()})
        for name in used.keys() | past.keys():
            lists = used.get(name) or past[name]
            failed = self._gc_network(name, _with(known.get(name, []), spared), lists, shared=shared)
            failures += failed
            if all(isinstance(one, UnknownPluginError) for one in failed):
                for key, network in past.get(name, {}).items():
                    if shared or not self._has_shared(network):
                        self._ledger.unnote(_note_name(key))
        for chain in self._chains.forget({key for lists in used.values() for key in lists}):
            remove_unused(chain, failures)

    def lost(self) -> list[str]:
        """Return what the node as a whole lacks of what the attachments need; see `CNI.lost`."""
        first = self._lost()
        if not first:
            return []
        time.sleep(_TWICE_SECONDS)
        second = self._lost()
        return [what for what in first if what in second]

    def _lost(self) -> list[str]:
        found = [what for plugin, requests in self._needing() for what in plugin.lost(requests)]
        return list(dict.fromkeys([*found, *(what for one in self._chains.nats() for what in one.lost())]))

    def _needing(self) -> list[tuple[Plugin, list[Request]]]:
        """Return what plugins are to be asked whether the node has lost anything; the same as long as nothing changes."""
        changes = self._ledger.changes
        asked_at, asked = self._asked
        if asked_at == changes:
            return asked
        made_with: dict[str, tuple[NetworkList, list[tuple[Attachment, Result]]]] = {}
        for entry in self._ledger.entries():
            if entry.whole and not isinstance(one := self._reader.read(entry), NetworkError) and one.network:
                _, those = made_with.setdefault(one.made_with, (one.network, []))
                those.append((one.attachment, one.result))
        asked = [
            each
            for network, those in made_with.values()
            for each in self._chains.of(network, lenient=True).needing(those)
        ]
        self._asked = changes, asked
        return asked

    def _gc_network(
        self, name: str, known: Sequence[Known], lists: Mapping[str, NetworkList], *, shared: bool
    ) -> list[NetworkError]:
        """Ask every configuration of one network, each about all that is attached to it, whatever it was made with.

        An interface of another configuration is no stray; but what a pod lacks is its own one's to put back.
        """
        failures: list[NetworkError] = []
        attached = [(each.attachment, each.result) for each in known]
        with collected(failures), self._chains.nat(name).gathered() as leave_alone:
            if any(each.network is None for each in known):
                leave_alone()
            for key, network in lists.items():
                ours = {each.attachment.owner for each in known if each.made_with == key}
                chain = self._chains.of(network, lenient=True)
                failed = chain.gc(attached, ours, shared=shared and not network.disable_gc)
                if any(plugin.translates for plugin, _ in failed):
                    leave_alone()
                failures += [error for _, error in failed]
        return failures

    def _has_shared(self, network: NetworkList) -> bool:
        return any(plugin.shared for plugin in self._chains.of(network, lenient=True).plugins())

    def _past(self, used: Mapping[str, Mapping[str, NetworkList]]) -> _Lists:
        """Return the configurations that things were made with, of networks that nobody uses now.

        Those of a network that goes on under its name need nothing of their own: what is called after it is looked after.
        """
        past: _Lists = defaultdict(dict)
        for name, text in self._ledger.notes(_MADE_WITH).items():
            try:
                network = NetworkList.from_json(json.loads(text), "a configuration of former pods")
            except (
                ValueError,
                RecursionError,
                TypeError,
            ) as error:  # of a damaged ledger, or a later release's
                log.warning("what %r may have left on the node stays: %s", name, error)
                self._ledger.unnote(name)
                continue
            key = key_of(network)
            if network.name not in used:
                past[network.name][key] = network
            elif used[network.name] and key not in used[network.name]:
                self._ledger.unnote(name)
        return past


@contextmanager
def collected(failures: list[NetworkError]) -> Iterator[None]:
    """Add what fails inside to others' failures."""
    try:
        yield
    except NetworkError as error:
        failures.append(error)


def remove_unused(chain: Chain, failures: list[NetworkError]) -> None:
    """Have a configuration's plugins remove what nothing is attached to."""
    for plugin in chain.plugins():
        with collected(failures):
            plugin.remove_unused()


def _with(known: list[Known], spared: Mapping[str, Collection[str]]) -> list[Known]:
    """Return attachments, and what is to be spared of containers that have none among them."""
    there = {one.attachment.container_id for one in known}
    strangers = [
        Known(Attachment(container), Result(ips=tuple(_addresses(addresses))))
        for container, addresses in spared.items()
        if container not in there
    ]
    return [*known, *strangers]


def _addresses(texts: Iterable[str]) -> Iterator[IPConfig]:
    for text in texts:
        try:
            yield IPConfig(ip_interface(text))
        except ValueError:  # whoever has kept it may have lost it, too
            log.warning("%r is no address that could be kept from others", text)


def _note_name(key: str) -> str:
    return _MADE_WITH + hashlib.sha256(key.encode()).hexdigest()[:32]
