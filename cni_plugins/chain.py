"""A network's plugins, made and called in their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from cni_plugins import plugin as plugins
from cni_plugins import results
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import LedgerError, NetworkError
from cni_plugins.ledger import Entry
from cni_plugins.links import State
from cni_plugins.masquerading import refuse_two
from cni_plugins.plugin import Attachment, Plugin, Request
from cni_plugins.settings import Settings
from cni_plugins.types import Interface, IPConfig, NetworkStack, Result


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

    def adopt(self, attachment: Attachment, stack: NetworkStack, pod: State) -> Result:
        """Return what ADD would have returned for a pod that has this interface. Raises NotAttachedError."""
        result = Result()
        for plugin, capabilities in self._links:
            request = Request(attachment, stack, result, attachment.runtime.only(capabilities))
            result = plugin.adopt(request, pod)
        return result if any(one.sandbox for one in result.interfaces) else _as_found(attachment, result, pod)

    def needing(self, attachments: Sequence[tuple[Attachment, Result]]) -> list[tuple[Plugin, list[Request]]]:
        """Return those plugins that can say what the node has lost, each with what it is to be asked of its attachments."""
        return [
            (
                plugin,
                [
                    Request(attachment, None, result, attachment.runtime.only(capabilities))
                    for attachment, result in attachments
                ],
            )
            for plugin, capabilities in self._links
            if type(plugin).lost is not Plugin.lost
        ]

    def status(self) -> list[str]:
        """Run every plugin's STATUS; what several say is said once."""
        return list(dict.fromkeys(problem for plugin, _ in self._links for problem in plugin.status()))

    def plugins(self) -> list[Plugin]:
        """Return the plugins."""
        return [plugin for plugin, _ in self._links]


def kept(entry: Entry) -> tuple[Attachment, Result]:
    """An attachment of the ledger, with its result. Raises LedgerError, ConfigurationError, MalformedResultError."""
    _refuse_fault(entry)
    return plugins.from_json(entry.attachment), results.from_json(entry.result or {})


def configuration(entry: Entry) -> NetworkList:
    """The configuration that an attachment of the ledger was made with. Raises ConfigurationError, LedgerError."""
    told: Mapping[str, object] = entry.configuration
    if not told:
        _refuse_fault(entry)
    return NetworkList.from_json(told, f"the configuration kept for {entry.owner}")


def stand_in(entry: Entry) -> tuple[Attachment, Result]:
    """What can be said of an attachment that cannot be read: whose it is, which is enough to spare it or to delete it."""
    container, _, ifname = entry.owner.rpartition("/")
    return Attachment(container or entry.container, ifname), Result()


def _refuse_fault(entry: Entry) -> None:
    if entry.fault:
        raise LedgerError(
            f"attachment {entry.owner} to network {entry.network} cannot be read: {entry.fault}; remove its pod, or wait "
            "for the next start, which makes it anew of what the pod has"
        )


def _as_found(attachment: Attachment, result: Result, pod: State) -> Result:
    """Return a result with the pod's interface, which nobody knows more of than can be seen."""
    link = pod.link
    interfaces = (
        *result.interfaces,
        Interface(link.name, link.mac, attachment.netns or attachment.owner, link.mtu),
    )
    ips = [
        IPConfig(address, pod.gateway(address), len(interfaces) - 1)
        for address in pod.addresses
        if not address.is_link_local
    ]
    routes = [route for route in pod.routes if route.gw is not None]
    return replace(result, interfaces=interfaces, ips=tuple(ips), routes=tuple(routes))
