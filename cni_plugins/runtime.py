"""CNI's verbs over attachments that are written down: ADD, DEL, CHECK, GC, STATUS and VERSION.

Source: the CNI specification 1.1.0, "Section 2: Execution Protocol" and "Section 3: Execution of Network Configurations".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cni_plugins import plugin as plugins
from cni_plugins import results
from cni_plugins.adoption import Adoption
from cni_plugins.chain import Chain, configuration, kept, stand_in
from cni_plugins.chains import Chains
from cni_plugins.conflist import NAME, NetworkList
from cni_plugins.errors import (
    AttachmentExistsError,
    ConfigurationError,
    NetworkError,
    UnknownAttachmentError,
    UnknownPluginError,
)
from cni_plugins.known import Reader, configurations
from cni_plugins.ledger import Entry, Ledger
from cni_plugins.plugin import Attachment
from cni_plugins.steps import undoing
from cni_plugins.turns import Gate, Turns
from cni_plugins.types import INTERFACE_NAME, NetworkStack, OwnStack, Result, SocketSource
from cni_plugins.upkeep import Upkeep, collected, remove_unused

log = logging.getLogger("cni_plugins")


class CNI:
    """The attachments of a node. Every method blocks and may be called by several threads at once.

    `binaries` are directories with external plugins, for types that there is no class for; none: such types are refused.
    """

    def __init__(
        self, ledger: Ledger, host: SocketSource | None = None, *, binaries: Sequence[Path] = ()
    ) -> None:
        self._ledger = ledger
        self._chains = Chains(ledger, host if host is not None else OwnStack(), binaries)
        self._reader = Reader()
        self._upkeep = Upkeep(ledger, self._chains, self._reader)
        self._adoption = Adoption(ledger, self._chains, self._reader, self._upkeep)
        self._gate = Gate()
        self._turns = Turns()

    def add(self, network: NetworkList, attachment: Attachment, stack: NetworkStack) -> Result:
        """Attach a pod: all plugins' ADD, or nothing.

        Raises AttachmentExistsError for one that is there (also half: `delete` it), and what the plugins raise; what the
        undoing of a failure could not undo is in the error's notes, and stays written down for `gc`.
        """
        _check_names(attachment)
        with self._gate.passing(), self._turns.of(attachment.container_id):
            chain = self._chain(network)
            name, owner = network.name, attachment.owner
            self._upkeep.note(network)
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
                self._delete(entry, stack, [network])

    def delete_all(
        self,
        container_id: str,
        stack: NetworkStack | None = None,
        *,
        otherwise: Sequence[NetworkList] = (),
    ) -> bool:
        """Detach a pod from every network that it is written down for; return whether there was any.

        `otherwise` are configurations to delete with where nobody can read what an attachment was made with: the names of
        interfaces, and whose addresses and ports are, depend on little more than the network's name.
        """
        with self._gate.passing(), self._turns.of(container_id):
            entries = self._ledger.entries(container=container_id)
            for entry in entries:
                self._delete(entry, stack, otherwise)
        return bool(entries)

    def rebuild(self, networks: Sequence[NetworkList], attachment: Attachment, stack: NetworkStack) -> bool:
        """Write an attachment down that is there and that the ledger has lost; False if it is not there.

        `networks` are the configurations that it may have been made with, the likeliest first. What it has is asked of the
        pod; `gc`, which has to follow before the next ADD, restores its claims and what the node lacks of it. Nothing
        happens to an attachment that is written down, or that was being taken back. Raises NetworkError.
        """
        _check_names(attachment)
        with self._gate.passing(), self._turns.of(attachment.container_id):
            return self._adoption.rebuild(networks, attachment, stack)

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
        spared: Mapping[str, Collection[str]] | None = None,
    ) -> list[NetworkError]:
        """Bring the node in line: the attachments of these containers are there, and no others.

        `valid` is asked when no other call is under way, so that what it says is true of all that is written down.
        `networks` are configurations to be brought in line even if nothing is attached with them; the plugins of
        attachments that are there are asked in any case. Nothing else happens meanwhile, so `shared` false leaves out
        plugins of others, which may take their time. One failure does not keep the rest from being done: all are returned.

        Nothing is taken from containers that are `spared`, nor are their addresses given to others: they are attached, and
        how is not known.

        Call it once before the first ADD: until then nobody knows what an earlier process has left.
        """
        failures: list[NetworkError] = []
        spared = spared or {}
        current = list(networks)
        with self._gate.alone():
            _, dead = self._sorted(valid())
        for entry in dead:  # one by one, as a plugin of others may take its time with it
            if entry.container not in spared:
                with collected(failures):
                    self._delete_dead(entry, current)
        with self._gate.alone():
            entries, _ = self._sorted(valid())
            self._upkeep.bring_in_line(entries, current, spared, failures, shared=shared)
        return failures

    def lost(self) -> list[str]:
        """Return what the node as a whole lacks of what the attachments need, a phrase each; `gc` puts it back.

        A cheap look: it finds a bridge or a table that is gone, not what single attachments lack.
        """
        return self._upkeep.lost()

    def status(self, network: NetworkList) -> list[str]:
        """Return what keeps ADD from working, a sentence each; empty if nothing does."""
        try:
            return self._chain(network).status()
        except NetworkError as error:
            return [str(error)]

    def is_attached(self, container_id: str) -> bool:
        """Say whether a container is attached to any network, wholly and in this boot.

        Not if that is written down so that nobody can read it: `rebuild` it then. What a later release has written is left
        to that one.
        """
        return any(map(self._reader.is_attached, self._ledger.entries(container=container_id)))

    def settle(self) -> None:
        """Wait for what was left for later."""
        self._chains.settle()

    def close(self) -> list[NetworkError]:
        """Finish what was left for later, and remove what nothing is attached to; attachments stay.

        Calls under way are waited for, later ones raise ClosedError. What could not be removed is returned. The ledger is
        the caller's to close.
        """
        failures: list[NetworkError] = []
        with self._gate.alone(close=True):
            self._chains.close()
            for chain in self._chains.all():
                remove_unused(chain, failures)
        return failures

    def _sorted(self, containers: Collection[str]) -> tuple[list[Entry], list[Entry]]:
        """Return the attachments that are whole and belong to one of these containers, and the others."""
        alive: list[Entry] = []
        dead: list[Entry] = []
        for entry in self._ledger.entries():
            (alive if entry.whole and entry.container in containers else dead).append(entry)
        return alive, dead

    def _delete_dead(self, found: Entry, otherwise: Sequence[NetworkList]) -> None:
        with self._gate.passing(), self._turns.of(found.container):
            if self._ledger.entry(found.network, found.owner) != found:
                return  # somebody was quicker, or has made it anew
            log.warning(
                "detaching %s from %s: no container of that name is there", found.owner, found.network
            )
            self._delete(found, None, otherwise)

    def _delete(
        self, entry: Entry, stack: NetworkStack | None, otherwise: Sequence[NetworkList] = ()
    ) -> None:
        stack = stack if entry.of_this_boot else None
        known = self._reader.read(entry)
        self._ledger.leave(entry.network, entry.owner)
        if isinstance(known, NetworkError):
            log.warning("%s; what there may be of it is deleted", known)
            self._delete_unread(entry, stack, [*configurations([entry]), *otherwise])
        elif known.network is not None:
            self._chain(known.network).delete(known.attachment, stack, known.result)
        self._ledger.forget(entry.network, entry.owner)
        self._reader.forget(entry)

    def _delete_unread(
        self, entry: Entry, stack: NetworkStack | None, networks: Iterable[NetworkList]
    ) -> None:
        attachment, result = stand_in(entry)
        for network in networks:
            # Names and claims are those of the network that it is written down for.
            chain = self._chains.of(replace(network, name=entry.network), lenient=True)
            try:
                chain.delete(attachment, stack, result)
            except UnknownPluginError as error:
                log.warning("attachment %s: %s", entry.owner, error)

    def _chain(self, network: NetworkList) -> Chain:
        return self._chains.of(network)

    def _undo(self, chain: Chain, attachment: Attachment, stack: NetworkStack) -> None:
        chain.delete(attachment, stack, Result())
        self._ledger.forget(chain.network.name, attachment.owner)


def _check_names(attachment: Attachment) -> None:
    if not NAME.fullmatch(attachment.container_id):
        raise ConfigurationError(
            f"container id {attachment.container_id!r} is not letters, digits, '_', '.' and '-', a letter or digit first"
        )
    if not attachment.netns:  # results tell by it which interfaces are the pod's
        raise ConfigurationError(f"attachment {attachment.owner}: give its network stack a name (netns)")
    if not INTERFACE_NAME.fullmatch(attachment.ifname):
        raise ConfigurationError(f"{attachment.ifname!r} is no interface name of at most 15 characters")
