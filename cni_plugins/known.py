"""What the ledger tells of attachments, read once per change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cni_plugins.chain import configuration, kept
from cni_plugins.chains import key_of
from cni_plugins.conflist import NetworkList
from cni_plugins.errors import IncompatibleVersionError, NetworkError
from cni_plugins.ledger import Entry
from cni_plugins.plugin import Attachment
from cni_plugins.types import Result


class Known(NamedTuple):
    """An attachment that is there, with the configuration that it was made with, and that one's key."""

    attachment: Attachment
    result: Result
    made_with: str = ""
    network: NetworkList | None = None
    """None if nobody can read it: then of the attachment only the names are known."""


class Reader:
    """Reads entries of a ledger; safe for threads, which may do some of the work twice."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], tuple[Entry, Known]] = {}

    def read(self, entry: Entry) -> Known | NetworkError:
        """Return what is written down, or why that cannot be read."""
        key = entry.network, entry.owner
        before, found = self._read.get(key, (None, None))
        if found is None or before is not entry:
            try:
                network, (attachment, result) = configuration(entry), kept(entry)
            except NetworkError as error:
                return error
            found = Known(attachment, result, key_of(network), network)
            self._read[key] = entry, found
        return found

    def is_attached(self, entry: Entry) -> bool:
        """Tell whether it is of a pod that is attached and was written down so that it can be detached.

        What a later release has written is left to that one.
        """
        if not entry.whole:
            return False
        found = self.read(entry)
        return not isinstance(found, NetworkError) or isinstance(found, IncompatibleVersionError)

    def forget(self, entry: Entry) -> None:
        """Forget what was read of an entry that is struck out."""
        self._read.pop((entry.network, entry.owner), None)


def configurations(entries: Iterable[Entry]) -> list[NetworkList]:
    """Return those configurations of attachments that can be read, though the rest of them may not."""
    found = []
    for entry in entries:
        try:
            found.append(configuration(entry))
        except NetworkError:  # whoever has read the entry has told of it
            continue
    return found
