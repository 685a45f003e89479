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
from pathlib import Path

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
from cni_plugins.plugin import Attachment, Context, Plugin
from cni_plugins.settings import Settings
from cni_plugins.shared_nat import SharedNat
from cni_plugins.turns import Gate, Turns
from cni_plugins.types import INTERFACE_NAME, NetworkStack, OwnStack, Result, SocketSource

log = logging.getLogger("cni_plugins")

_LATER_THREADS = 8  # deleting links is waiting, and those who wait at one time share it


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
            try:
                result = chain.add(attachment, stack)
                self._ledger.finish(name, owner, results.to_json(result))
            except BaseException as error:
                self._undo(chain, attachment, stack, error)
                raise
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
            entries, containers = [], valid()
            for entry in self._ledger.entries():
                if entry.container in containers and entry.of_this_boot and entry.result is not None:
                    entries.append(entry)
                    continue
                log.warning(
                    "detaching %s from %s: no container of that name is there", entry.owner, entry.network
                )
                with _collected(failures):
                    self._delete(entry, None)
            of_networks: dict[str, dict[str, NetworkList]] = {}
            for network in (*networks, *map(configuration, entries)):
                of_networks.setdefault(network.name, {}).setdefault(_key(network), network)
            for name, lists in of_networks.items():
                here = [entry for entry in entries if entry.network == name]
                self._gc_network(here, lists, failures, shared=shared)
            self._forget_chains({key for lists in of_networks.values() for key in lists}, failures)
        return failures

    def status(self, network: NetworkList) -> list[str]:
        """Return what keeps ADD from working, a sentence each; empty if nothing does."""
        try:
            return self._chain(network).status()
        except NetworkError as error:
            return [str(error)]

    def addresses(self, container_id: str) -> list[str]:
        """Return the addresses that a container has, in the order of its results."""
        return [
            str(ip.address.ip)
            for entry in self._ledger.entries(container=container_id)
            for ip in kept(entry)[1].ips
        ]

    def is_attached(self, container_id: str) -> bool:
        """Say whether a container is attached to any network, wholly and in this boot."""
        entries = self._ledger.entries(container=container_id)
        return any(entry.result is not None and entry.of_this_boot for entry in entries)

    def plugins(self, network: NetworkList) -> list[Plugin]:
        """Return the plugins of a configuration. Raises ConfigurationError."""
        return self._chain(network).plugins()

    def settle(self) -> None:
        """Wait for what was left for later."""
        for future in list(self._pending):
            future.result()

    def close(self) -> list[NetworkError]:
        """Finish what was left for later, and remove what nothing is attached to; attachments stay.

        What could not be removed is returned. The ledger is the caller's to close.
        """
        self._later.shutdown(wait=True)
        failures: list[NetworkError] = []
        for chain in self._chains.values():
            _remove_unused(chain, failures)
        return failures

    def _delete(self, entry: Entry, stack: NetworkStack | None) -> None:
        attachment, result = kept(entry)
        self._chain(configuration(entry)).delete(attachment, stack if entry.of_this_boot else None, result)
        self._ledger.forget(entry.network, entry.owner)

    def _undo(self, chain: Chain, attachment: Attachment, stack: NetworkStack, error: BaseException) -> None:
        try:
            chain.delete(attachment, stack, Result())
            self._ledger.forget(chain.network.name, attachment.owner)
        except NetworkError as second:
            error.add_note(f"and the undo failed: {second}")

    def _gc_network(
        self,
        entries: Sequence[Entry],
        lists: dict[str, NetworkList],
        failures: list[NetworkError],
        *,
        shared: bool,
    ) -> None:
        """Ask every configuration of one network, each about all that is attached to it.

        An interface of another configuration is no stray; but what is translated for a pod is its own one's business.
        """
        known = [kept(entry) for entry in entries]
        name = next(iter(lists.values())).name
        with _collected(failures), self._nat(name).gathered():
            for key, network in lists.items():
                owners = {entry.owner for entry in entries if _key(configuration(entry)) == key}
                with self._nat(name).of(owners):
                    self._chain(network).gc(known, shared=shared and not network.disable_gc)

    def _chain(self, network: NetworkList) -> Chain:
        key = _key(network)
        with self._lock:
            found = self._chains.get(key)
        if found is None:
            found = Chain(network, lambda settings: self._make(network, settings))
            with self._lock:
                found = self._chains.setdefault(key, found)
        return found

    def _forget_chains(self, used: Collection[str], failures: list[NetworkError]) -> None:
        with self._lock:
            unused = [self._chains.pop(key) for key in self._chains.keys() - used]
        for chain in unused:
            _remove_unused(chain, failures)

    def _make(self, network: NetworkList, settings: Settings) -> Plugin:
        context = Context(
            network=network.name,
            host=self._host,
            links=self._links,
            ledger=self._ledger,
            nat=lambda: self._nat(network.name),
            delegate=lambda part: self._make(network, part),
            later=self._do_later,
        )
        try:
            class_ = registry.find(settings.type)
        except UnknownPluginError:
            if not self._binaries:
                raise
            # Loaded on demand: it alone starts processes.
            from cni_plugins.external import ExternalPlugin  # noqa: PLC0415

            return ExternalPlugin(settings, context, binaries=self._binaries, version=network.cni_version)
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
            except NetworkError as error:
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
