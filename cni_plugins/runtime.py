"""CNI's verbs over attachments that are written down: ADD, DEL, CHECK, GC, STATUS and VERSION.

Source: the CNI specification 1.1.0, "Section 2: Execution Protocol" and "Section 3: Execution of Network Configurations".
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cni_plugins import links, nat, registry, results
from cni_plugins import plugin as plugins
from cni_plugins.chain import Chain, configuration, kept
from cni_plugins.conflist import NAME, NetworkList
from cni_plugins.errors import (
    AttachmentExistsError,
    ConfigurationError,
    NetworkError,
    UnknownAttachmentError,
    UnknownPluginError,
)
from cni_plugins.ledger import Entry, Ledger
from cni_plugins.missing import MissingPlugin
from cni_plugins.plugin import Attachment, Context, Plugin
from cni_plugins.settings import Settings
from cni_plugins.shared_nat import SharedNat
from cni_plugins.steps import undoing
from cni_plugins.turns import Gate, Turns
from cni_plugins.types import INTERFACE_NAME, NetworkStack, OwnStack, Result, SocketSource

log = logging.getLogger("cni_plugins")

_LATER_THREADS = 8  # deleting links is waiting, and those who wait at one time share it


class _Known(NamedTuple):
    """An attachment that is there, with the key of the configuration that it was made with."""

    attachment: Attachment
    result: Result
    made_with: str


class CNI:
    """The attachments of a node. Every method blocks and may be called by several threads at once.

    `binaries` are directories with external plugins, for types that there is no class for; none: such types are refused.
    """

    def __init__(
        self, ledger: Ledger, host: SocketSource | None = None, *, binaries: Sequence[Path] = ()
    ) -> None:
        self._ledger = ledger
        self._host = host if host is not None else OwnStack()
        self._binaries = tuple(binaries)
        self._links = links.for_this_system(self._host)
        self._lock = threading.Lock()
        self._chains: dict[str, Chain] = {}
        self._lenient: dict[str, Chain] = {}
        self._nats: dict[str, SharedNat] = {}
        self._gate = Gate()
        self._turns = Turns()
        self._later = ThreadPoolExecutor(_LATER_THREADS, "cni-later")
        self._pending: set[Future[None]] = set()

    def add(self, network: NetworkList, attachment: Attachment, stack: NetworkStack) -> Result:
        """Attach a pod: all plugins' ADD, or nothing.

        Raises AttachmentExistsError for one that is there (also half: `delete` it), and what the plugins raise; what the
        undoing of a failure could not undo is in the error's notes, and stays written down for `gc`.
        """
        _check_names(attachment)
        with self._gate.passing(), self._turns.of(attachment.container_id):
            chain = self._chain(network)
            name, owner = network.name, attachment.owner
            entry = Entry(
                name, owner, attachment.container_id, network.to_json(), plugins.as_json(attachment)
            )
            if not self._ledger.begin(entry):
                raise AttachmentExistsError(f"attachment {owner} to network {name} is there; delete it first")
            with undoing() as undo:
                undo(partial(self._undo, chain, attachment, stack))
                result = chain.add(attachment, stack)
                self._ledger.finish(name, owner, results.to_json(result))
            return result

    def delete(self, network: NetworkList, attachment: Attachment, stack: NetworkStack | None = None) -> None:
        """Detach a pod, with the configuration that it was attached with; succeeds on what is gone.

        What nobody has written down is deleted with the given configuration: its record may be lost. Ends with the first
        plugin that fails, and can be repeated.
        """
        with self._gate.passing(), self._turns.of(attachment.container_id):
            entry = self._ledger.entry(network.name, attachment.owner)
            if entry is None:
                self._chain(network).delete(attachment, stack, Result())
            else:
                self._delete(entry, stack)

    def delete_all(self, container_id: str, stack: NetworkStack | None = None) -> None:
        """Detach a pod from every network that it is written down for; succeeds if there is none."""
        with self._gate.passing(), self._turns.of(container_id):
            for entry in self._ledger.entries(container=container_id):
                self._delete(entry, stack)

    def check(self, network: NetworkList, attachment: Attachment, stack: NetworkStack) -> None:
        """Compare an attachment with what was made; nothing happens if the configuration has `disableCheck`.

        Raises UnknownAttachmentError, NotAttachedError, AttachmentBrokenError.
        """
        with self._gate.passing(), self._turns.of(attachment.container_id):
            entry = self._ledger.entry(network.name, attachment.owner)
            if entry is None or entry.result is None:
                raise UnknownAttachmentError(
                    f"attachment {attachment.owner} to network {network.name} was never made; add it"
                )
            made_with = configuration(entry)
            if not made_with.disable_check:
                known, result = kept(entry)
                self._chain(made_with).check(known, stack, result)

    def gc(
        self,
        valid: Callable[[], Collection[str]],
        networks: Iterable[NetworkList] = (),
        *,
        shared: bool = True,
    ) -> list[NetworkError]:
        """Bring the node in line: the attachments of these containers are there, and no others.

        `valid` is asked when no other call is under way, so that what it says is true of all that is written down.
        `networks` are configurations to be brought in line even if nothing is attached with them; the plugins of
        attachments that are there are asked in any case. Nothing else happens meanwhile, so `shared` false leaves out
        plugins of others, which may take their time. One failure does not keep the rest from being done: all are returned.

        Call it once before the first ADD: until then nobody knows what an earlier process has left.
        """
        failures: list[NetworkError] = []
        with self._gate.alone():
            _, dead = self._sorted(valid())
        for entry in dead:  # one by one, as a plugin of others may take its time with it
            with _collected(failures):
                self._delete_dead(entry)
        with self._gate.alone():
            entries, _ = self._sorted(valid())
            used: dict[str, dict[str, NetworkList]] = {}
            known: dict[str, list[_Known]] = {}
            for network in networks:
                used.setdefault(network.name, {})[_key(network)] = network
            unreadable: set[str] = set()
            for entry in entries:
                try:
                    network, (attachment, result) = configuration(entry), kept(entry)
                except NetworkError as error:  # what it has would be taken for nobody's
                    failures.append(error)
                    unreadable.add(entry.network)
                    continue
                key = _key(network)
                used.setdefault(network.name, {}).setdefault(key, network)
                known.setdefault(network.name, []).append(_Known(attachment, result, key))
            for name in used.keys() - unreadable:
                self._gc_network(name, known.get(name, []), used[name], failures, shared=shared)
            self._forget_chains({key for lists in used.values() for key in lists}, failures)
        return failures

    def status(self, network: NetworkList) -> list[str]:
        """Return what keeps ADD from working, a sentence each; empty if nothing does."""
        try:
            return self._chain(network).status()
        except NetworkError as error:
            return [str(error)]

    def is_attached(self, container_id: str) -> bool:
        """Say whether a container is attached to any network, wholly and in this boot."""
        return any(entry.whole for entry in self._ledger.entries(container=container_id))

    def settle(self) -> None:
        """Wait for what was left for later."""
        for future in list(self._pending):
            future.result()

    def close(self) -> list[NetworkError]:
        """Finish what was left for later, and remove what nothing is attached to; attachments stay.

        Calls under way are waited for, later ones raise ClosedError. What could not be removed is returned. The ledger is
        the caller's to close.
        """
        failures: list[NetworkError] = []
        with self._gate.alone(close=True):
            self._later.shutdown(wait=True)
            for chain in list(self._chains.values()):
                _remove_unused(chain, failures)
        return failures

    def _sorted(self, containers: Collection[str]) -> tuple[list[Entry], list[Entry]]:
        """Return the attachments that are whole and belong to one of these containers, and the others."""
        alive: list[Entry] = []
        dead: list[Entry] = []
        for entry in self._ledger.entries():
            (alive if entry.whole and entry.container in containers else dead).append(entry)
        return alive, dead

    def _delete_dead(self, found: Entry) -> None:
        with self._gate.passing(), self._turns.of(found.container):
            if self._ledger.entry(found.network, found.owner) != found:
                return  # somebody was quicker, or has made it anew
            log.warning(
                "detaching %s from %s: no container of that name is there", found.owner, found.network
            )
            self._delete(found, None)

    def _delete(self, entry: Entry, stack: NetworkStack | None) -> None:
        attachment, result = kept(entry)
        self._ledger.leave(entry.network, entry.owner)
        self._chain(configuration(entry)).delete(attachment, stack if entry.of_this_boot else None, result)
        self._ledger.forget(entry.network, entry.owner)

    def _undo(self, chain: Chain, attachment: Attachment, stack: NetworkStack) -> None:
        chain.delete(attachment, stack, Result())
        self._ledger.forget(chain.network.name, attachment.owner)

    def _gc_network(
        self,
        name: str,
        known: Sequence[_Known],
        lists: dict[str, NetworkList],
        failures: list[NetworkError],
        *,
        shared: bool,
    ) -> None:
        """Ask every configuration of one network, each about all that is attached to it, whatever it was made with.

        An interface of another configuration is no stray; but what a pod lacks is its own one's to put back.
        """
        attached = [(each.attachment, each.result) for each in known]
        with _collected(failures), self._nat(name).gathered() as leave_alone:
            for key, network in lists.items():
                ours = {each.attachment.owner for each in known if each.made_with == key}
                chain = self._chain(network, lenient=True)
                failed = chain.gc(attached, ours, shared=shared and not network.disable_gc)
                if any(plugin.translates for plugin, _ in failed):
                    leave_alone()
                failures += [error for _, error in failed]

    def _chain(self, network: NetworkList, *, lenient: bool = False) -> Chain:
        """Return the plugins of a configuration; a lenient one has stand-ins for types that nobody has any more."""
        key = _key(network)
        with self._lock:
            found = self._chains.get(key) or (self._lenient.get(key) if lenient else None)
        if found is not None:
            return found
        chains = self._chains
        try:
            made = Chain(network, lambda settings: self._make(network, settings))
        except UnknownPluginError:
            if not lenient:
                raise
            made = Chain(network, lambda settings: self._make(network, settings, lenient=True))
            chains = self._lenient
        with self._lock:
            return chains.setdefault(key, made)

    def _forget_chains(self, used: Collection[str], failures: list[NetworkError]) -> None:
        with self._lock:
            self._lenient.clear()  # what they lack may be there the next time
            unused = [self._chains.pop(key) for key in self._chains.keys() - used]
        for chain in unused:
            _remove_unused(chain, failures)

    def _make(self, network: NetworkList, settings: Settings, *, lenient: bool = False) -> Plugin:
        context = Context(
            network=network.name,
            host=self._host,
            links=self._links,
            ledger=self._ledger,
            nat=lambda: self._nat(network.name),
            delegate=lambda part: self._make(network, part, lenient=lenient),
            later=self._do_later,
        )
        try:
            return self._find(settings, context, network.cni_version)
        except UnknownPluginError as error:
            if lenient:
                return MissingPlugin(error)
            raise

    def _find(self, settings: Settings, context: Context, version: str) -> Plugin:
        try:
            class_ = registry.find(settings.type)
        except UnknownPluginError:
            if not self._binaries:
                raise
            # Loaded on demand: it alone starts processes.
            from cni_plugins.external import ExternalPlugin  # noqa: PLC0415

            return ExternalPlugin(settings, context, binaries=self._binaries, version=version)
        return class_(settings, context)

    def _nat(self, network: str) -> SharedNat:
        with self._lock:
            if network not in self._nats:
                self._nats[network] = SharedNat(nat.for_this_system(self._host, network))
            return self._nats[network]

    def _do_later(self, what: str, function: Callable[[], object]) -> None:
        def run() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001 - nobody asks this thread what has become of it
                log.warning("%s was not done and waits for the next gc: %s", what, error)

        future = self._later.submit(run)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)


@contextmanager
def _collected(failures: list[NetworkError]) -> Iterator[None]:
    try:
        yield
    except NetworkError as error:
        failures.append(error)


def _remove_unused(chain: Chain, failures: list[NetworkError]) -> None:
    for plugin in chain.plugins():
        with _collected(failures):
            plugin.remove_unused()


def _key(network: NetworkList) -> str:
    return json.dumps(network.to_json(), sort_keys=True)


def _check_names(attachment: Attachment) -> None:
    if not NAME.fullmatch(attachment.container_id):
        raise ConfigurationError(
            f"container id {attachment.container_id!r} is not letters, digits, '_', '.' and '-', a letter or digit first"
        )
    if not attachment.netns:  # results tell by it which interfaces are the pod's
        raise ConfigurationError(f"attachment {attachment.owner}: give its network stack a name (netns)")
    if not INTERFACE_NAME.fullmatch(attachment.ifname):
        raise ConfigurationError(f"{attachment.ifname!r} is no interface name of at most 15 characters")
