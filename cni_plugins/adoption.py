"""Attachments that are there and that nobody has written down, or that nobody can read any more."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cni_plugins import plugin as plugins
from cni_plugins import results
from cni_plugins.chains import Chains
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import ConfigurationError, NotAttachedError
from cni_plugins.known import Reader, configurations
from cni_plugins.ledger import Entry, Ledger
from cni_plugins.links import State
from cni_plugins.plugin import Attachment
from cni_plugins.types import NetworkStack, Result
from cni_plugins.upkeep import Upkeep

log = logging.getLogger("cni_plugins")


class Adoption:
    """Writes attachments down by what pods have."""

    def __init__(self, ledger: Ledger, chains: Chains, reader: Reader, upkeep: Upkeep) -> None:
        self._ledger = ledger
        self._chains = chains
        self._reader = reader
        self._upkeep = upkeep

    def rebuild(self, networks: Sequence[NetworkList], attachment: Attachment, stack: NetworkStack) -> bool:
        """See `CNI.rebuild`."""
        entries = self._ledger.entries(container=attachment.container_id)
        if any(entry.leaving for entry in entries):
            return False
        if any(map(self._reader.is_attached, entries)):
            return True
        pod = self._chains.links.state(stack, attachment.ifname)
        if pod is None or not any(not address.is_link_local for address in pod.addresses):
            return False
        damaged = [entry for entry in entries if entry.owner == attachment.owner]
        try:
            network, result = self._adopted([*configurations(damaged), *networks], attachment, stack, pod)
        except NotAttachedError as error:
            log.warning("%s", error)
            return False
        self._upkeep.note(network)
        for entry in damaged:
            self._ledger.forget(entry.network, entry.owner)
        self._ledger.restore(
            Entry(
                *(network.name, attachment.owner, attachment.container_id, network.to_json()),
                *(plugins.as_json(attachment), results.to_json(result)),
            )
        )
        addresses = ", ".join(str(ip.address) for ip in result.ips)
        log.warning(
            "attachment %s to network %s was lost, and is written down anew: %s",
            *(attachment.owner, network.name, addresses),
        )
        return True

    def _adopted(
        self, networks: Sequence[NetworkList], attachment: Attachment, stack: NetworkStack, pod: State
    ) -> tuple[NetworkList, Result]:
        """Return what an attachment is by the first configuration that knows its host end, else by the first of all."""
        found = []
        for network in networks:
            result = self._chains.of(network, lenient=True).adopt(attachment, stack, pod)
            if any(not one.sandbox for one in result.interfaces):
                return network, result
            found.append((network, result))
        if not found:
            raise ConfigurationError(f"attachment {attachment.owner}: no configuration to take it over with")
        return found[0]
