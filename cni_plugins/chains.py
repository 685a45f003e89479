"""The plugins of all configurations of a node, made when they are needed, and what they share."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cni_plugins import links, nat, registry
from cni_plugins.chain import Chain
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import UnknownPluginError
from cni_plugins.ledger import Ledger
from cni_plugins.missing import MissingPlugin
from cni_plugins.plugin import Context, Plugin
from cni_plugins.settings import Settings
from cni_plugins.shared_nat import SharedNat
from cni_plugins.types import SocketSource

log = logging.getLogger("cni_plugins")

_LATER_THREADS = 8  # deleting links is waiting, and those who wait at one time share it


class Chains:
    """A chain per configuration, an address translation per network. Safe for threads."""

    def __init__(self, ledger: Ledger, host: SocketSource, binaries: Sequence[Path]) -> None:
        self._ledger = ledger
        self._host = host
        self._binaries = tuple(binaries)
        self.links = links.for_this_system(host)
        self._lock = threading.Lock()
        self._chains: dict[str, Chain] = {}
        self._lenient: dict[str, Chain] = {}
        self._nats: dict[str, SharedNat] = {}
        self._later = ThreadPoolExecutor(_LATER_THREADS, "cni-later")
        self._pending: set[Future[None]] = set()

    def of(self, network: NetworkList, *, lenient: bool = False) -> Chain:
        """Return the plugins of a configuration; a lenient one has stand-ins for types that nobody has any more.

        Raises ConfigurationError.
        """
        key = key_of(network)
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

    def all(self) -> list[Chain]:
        """Return the chains of which no plugin is missing."""
        with self._lock:
            return list(self._chains.values())

    def forget(self, used: Collection[str]) -> list[Chain]:
        """Forget the chains of all but these configurations, by their keys; return them."""
        with self._lock:
            self._lenient.clear()  # what they lack may be there the next time
            return [self._chains.pop(key) for key in self._chains.keys() - used]

    def nat(self, network: str) -> SharedNat:
        """Return the address translation of a network. Raises ConfigurationError."""
        with self._lock:
            if network not in self._nats:
                self._nats[network] = SharedNat(nat.for_this_system(self._host, network))
            return self._nats[network]

    def nats(self) -> list[SharedNat]:
        """Return the address translations that have been asked for."""
        with self._lock:
            return list(self._nats.values())

    def settle(self) -> None:
        """Wait for what was left for later."""
        for future in list(self._pending):
            future.result()

    def close(self) -> None:
        """Finish what was left for later; nothing can be left any more."""
        self._later.shutdown(wait=True)

    def _make(self, network: NetworkList, settings: Settings, *, lenient: bool = False) -> Plugin:
        context = Context(
            network=network.name,
            host=self._host,
            links=self.links,
            ledger=self._ledger,
            nat=lambda: self.nat(network.name),
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

    def _do_later(self, what: str, function: Callable[[], object]) -> None:
        def run() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001 - nobody asks this thread what has become of it
                log.warning("%s was not done and waits for the next gc: %s", what, error)

        future = self._later.submit(run)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)


def key_of(network: NetworkList) -> str:
    """Return what tells a configuration from all others."""
    return json.dumps(network.to_json(), sort_keys=True)
