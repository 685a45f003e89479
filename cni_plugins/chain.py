"""A network's plugins, made and called in their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from cni_plugins import plugin as plugins
from cni_plugins import results
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import NetworkError
from cni_plugins.ledger import Entry
from cni_plugins.masquerading import refuse_two
from cni_plugins.plugin import Attachment, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import NetworkStack, Result


class Chain:
    """The plugins of one configuration. Raises ConfigurationError, also for a type that nobody has."""

    def __init__(self, network: NetworkList, make: Callable[[Settings], Plugin]) -> None:
        self.network = network
        parts = [
            Settings(values, f"network {network.name}: plugin {values.get('type')}")
            for values in network.plugins
        ]
        refuse_two(parts)
        self._links = [(make(settings), settings.capabilities) for settings in parts]

    def add(self, attachment: Attachment, stack: NetworkStack) -> Result:
        """Run every plugin's ADD; whoever calls runs `delete` after a failure."""
        result = Result()
        for plugin, capabilities in self._links:
            result = plugin.add(Request(attachment, stack, result, attachment.runtime.only(capabilities)))
        return result

    def delete(self, attachment: Attachment, stack: NetworkStack | None, result: Result) -> None:
        """Run every plugin's DEL, the last one first. It ends with the first failure.

        What a later plugin has built on an address must be gone before that address is free.
        """
        for plugin, capabilities in reversed(self._links):
            plugin.delete(Request(attachment, stack, result, attachment.runtime.only(capabilities)))

    def check(self, attachment: Attachment, stack: NetworkStack, result: Result) -> None:
        """Run every plugin's CHECK."""
        for plugin, capabilities in self._links:
            plugin.check(Request(attachment, stack, result, attachment.runtime.only(capabilities)))

    def gc(
        self, attachments: Sequence[tuple[Attachment, Result]], ours: Collection[str], *, shared: bool = True
    ) -> list[tuple[Plugin, NetworkError]]:
        """Run every plugin's GC, or only of those whose things are this runtime's alone; return what failed.

        `ours` are the owners of attachments that were made by this chain.
        """
        failures = []
        for plugin, capabilities in self._links:
            if plugin.shared and not shared:
                continue
            requests = [
                Request(
                    attachment,
                    None,
                    result,
                    attachment.runtime.only(capabilities),
                    ours=attachment.owner in ours,
                )
                for attachment, result in attachments
            ]
            try:
                plugin.gc(requests)
            except NetworkError as error:
                failures.append((plugin, error))
        return failures

    def status(self) -> list[str]:
        """Run every plugin's STATUS; what several say is said once."""
        return list(dict.fromkeys(problem for plugin, _ in self._links for problem in plugin.status()))

    def plugins(self) -> list[Plugin]:
        """Return the plugins."""
        return [plugin for plugin, _ in self._links]


def kept(entry: Entry) -> tuple[Attachment, Result]:
    """An attachment of the ledger, with its result."""
    return plugins.from_json(entry.attachment), results.from_json(entry.result or {})


def configuration(entry: Entry) -> NetworkList:
    """The configuration that an attachment of the ledger was made with."""
    told: Mapping[str, object] = entry.configuration
    return NetworkList.from_json(told, f"the configuration kept for {entry.owner}")
