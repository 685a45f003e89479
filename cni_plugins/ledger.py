"""What must survive the process: which attachments there are, and who holds what only one may have.

An attachment is written down before anything of it is made and struck out after all of it is gone, so whatever a crash
leaves has an owner that can be found. The same goes for claims: addresses of a range, ports of the node. A claim is of one
boot; those of earlier boots are void, as what they stood for went with the kernel.

All of it is in memory too, so nothing is asked of the disk, and what is taken back on a disk that cannot be written to is
taken back nevertheless: it is written with the next change that can be. `ledger_file` has the file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cni_plugins.errors import ClaimedError, LedgerError
from cni_plugins.ledger_file import LedgerFile, Statement
from cni_plugins.ledger_rescue import Contents, Row

_Index = TypeVar("_Index")
_Key = tuple[str, str]

_PUT = "INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_CLAIM = "INSERT OR REPLACE INTO claims (pool, value, owner, boot) VALUES (?, ?, ?, ?)"
_NOTE = "INSERT OR REPLACE INTO notes VALUES (?, ?)"


@dataclass(frozen=True, slots=True)
class Entry:
    """An attachment as it is written down; JSON in the forms of `conflist`, `plugin` and `results`."""

    network: str
    owner: str
    container: str
    configuration: Mapping[str, Any]
    """The configuration that it was made with, which is the one to delete it with."""
    attachment: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    """None until ADD has succeeded."""
    of_this_boot: bool = True
    leaving: bool = False
    """DEL has begun with it."""
    fault: str = ""
    """Why what is written down cannot be read, as far as that can be told from here; then the parts are empty."""

    @property
    def whole(self) -> bool:
        """It was made, and nothing of it has been taken back."""
        return self.result is not None and self.of_this_boot and not self.leaving


class Ledger:
    """A ledger in a file, or in memory without one. Safe for threads; blocks for well under a millisecond.

    It opens whatever is wrong with the file (`ledger_file`). `boot` tells one boot of the node from another. Only one
    process at a time may have a file open. `make_room` is called when the disk is full: it may give up something, and
    tells whether it did.

    Methods that take something back do not fail for the disk's sake; those that write down something new raise LedgerError
    if they cannot. After `close` every method raises it.
    """

    def __init__(
        self, path: Path | None, boot: str, *, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self._boot = boot
        self._writing = threading.Lock()
        """Around every change, and the disk; whoever only reads never waits for it."""
        self._memory = threading.Lock()
        self._indexing = threading.Lock()
        self._indexes: dict[str, Any] = {}
        self._rows: dict[_Key, Row] = {}
        self._entries: dict[_Key, Entry] = {}
        self._of_container: dict[str, dict[_Key, None]] = {}
        self._owners: dict[str, dict[str, str]] = {}
        """By pool the owners of the values, the oldest claim first."""
        self._values: dict[tuple[str, str], dict[str, None]] = {}
        """By pool and owner the values."""
        self._notes: dict[str, str] = {}
        self._changes = 0
        self._closed = False
        self._file = LedgerFile(path, make_room) if path is not None else None
        if self._file is not None:
            self._take_over(self._file.open())

    def close(self) -> None:
        """Close the file, once nobody is at it."""
        with self._writing, self._memory:
            self._closed = True
            if self._file is not None:
                self._file.close()

    @property
    def rebuilt(self) -> bool:
        """Whether an earlier process's file was missing or could not be used: pods may be attached that are not in it."""
        return self._file is not None and self._file.rebuilt

    @property
    def problem(self) -> str:
        """Why nothing can be written, with the remedy; empty if the latest change was."""
        return self._file.problem if self._file is not None else ""

    @property
    def changes(self) -> int:
        """How often the attachments have changed."""
        return self._changes

    def retry(self) -> None:
        """Write what could not be written before; `problem` tells whether that went well."""
        with self._writing:
            if self.problem:
                self._save_or_remember([])

    # -- attachments

    def begin(self, entry: Entry) -> bool:
        """Write an attachment down that is about to be made; False if it is there. Raises LedgerError."""
        row = self._row(entry, None)
        with self._writing:
            if row[:2] in self._rows:
                return False
            self._save([(_PUT, row)])
            self._put(row)
        return True

    def finish(self, network: str, owner: str, result: Mapping[str, Any]) -> None:
        """Add the result of what `begin` has announced. Raises LedgerError."""
        with self._writing:
            before = self._rows.get((network, owner))
            if before is not None:
                row = (*before[:6], _text(result), before[7])
                self._save([(_PUT, row)])
                self._put(row)

    def restore(self, entry: Entry) -> None:
        """Have an attachment that was found instead of one that nobody can read, or that nobody has written down."""
        with self._writing:
            row = self._row(entry, entry.result)
            self._put(row)
            self._save_or_remember([(_PUT, row)])

    def leave(self, network: str, owner: str) -> None:
        """Write down that an attachment is about to be taken back: if that is cut short, it is not whole any more."""
        with self._writing:
            before = self._rows.get((network, owner))
            if before is not None:
                row = (*before[:7], 1)
                self._put(row)
                self._save_or_remember([(_PUT, row)])

    def forget(self, network: str, owner: str) -> None:
        """Strike an attachment out; succeeds if it is not there."""
        with self._writing:
            if (network, owner) in self._rows:
                self._drop((network, owner))
                query = "DELETE FROM attachments WHERE network = ? AND owner = ?"
                self._save_or_remember([(query, (network, owner))])

    def entry(self, network: str, owner: str) -> Entry | None:
        """Return one attachment, the same object as long as it does not change."""
        with self._reading():
            return self._entry((network, owner)) if (network, owner) in self._rows else None

    def entries(self, *, container: str | None = None) -> list[Entry]:
        """Return all attachments, or a container's, in no particular order."""
        with self._reading():
            keys = self._rows if container is None else self._of_container.get(container, {})
            return [*map(self._entry, keys)]

    # -- claims

    def claim(self, pool: str, value: str, owner: str) -> None:
        """Write down that a value of a pool is an owner's; it may be so already.

        Raises ClaimedError if it is another one's, whom the message names, LedgerError.
        """
        self.claim_all(pool, (value,), owner)

    def claim_all(
        self,
        pool: str,
        values: Sequence[str],
        owner: str,
        notes: Mapping[str, str] | None = None,
        *,
        found: bool = False,
    ) -> None:
        """Claim several values, or none of them, and keep notes with them. Raises ClaimedError, LedgerError.

        What was only found to be the owner's is so even if it cannot be written down.
        """
        with self._writing:
            owners = self._owners.get(pool, {})
            for value in values:
                holder = owners.get(value, owner)
                if holder != owner:
                    raise ClaimedError(
                        f"{value} in {pool}, wanted by {owner}, belongs to {holder}; delete that one first"
                    )
            fresh = [value for value in values if value not in owners]
            statements: list[Statement] = [(_CLAIM, (pool, value, owner, self._boot)) for value in fresh]
            statements += [(_NOTE, one) for one in (notes or {}).items()]
            if not statements:
                return
            if found:
                self._save_or_remember(statements)
            else:
                self._save(statements)
            with self._memory:
                for value in fresh:
                    self._hold(pool, value, owner)
                self._notes.update(notes or {})

    def release(self, pool: str, owner: str) -> list[str]:
        """Give back all that an owner has of a pool; return what that was."""
        with self._writing:
            with self._memory:
                values = [*self._values.pop((pool, owner), ())]
                for value in values:
                    del self._owners[pool][value]
            if values:
                query = "DELETE FROM claims WHERE pool = ? AND owner = ?"
                self._save_or_remember([(query, (pool, owner))])
        return values

    def claims(self, pool: str) -> list[tuple[str, str]]:
        """Return every claimed value of a pool with its owner, oldest claim first."""
        with self._reading():
            return [*self._owners.get(pool, {}).items()]

    def pools(self, prefix: str) -> list[str]:
        """Return the pools whose names begin so and of which something is claimed."""
        with self._reading():
            return [pool for pool, owners in self._owners.items() if owners and pool.startswith(prefix)]

    def index(self, pool: str, make: Callable[[], _Index]) -> _Index:
        """Return what all who use a pool share to find their way in it, made when it is first asked for.

        It is right as long as whoever claims and releases in the pool does so through it.
        """
        with self._indexing:
            if pool not in self._indexes:
                self._indexes[pool] = make()
            index: _Index = self._indexes[pool]
            return index

    # -- notes

    def note(self, name: str, value: str) -> None:
        """Keep a word for later; it counts even if it cannot be written down now."""
        with self._writing:
            if self._notes.get(name) != value:
                with self._memory:
                    self._notes[name] = value
                self._save_or_remember([(_NOTE, (name, value))])

    def noted(self, name: str) -> str | None:
        """Return what was kept under a name."""
        with self._reading():
            return self._notes.get(name)

    def notes(self, prefix: str) -> dict[str, str]:
        """Return what is kept under names that begin so."""
        with self._reading():
            return {name: value for name, value in self._notes.items() if name.startswith(prefix)}

    def unnote(self, name: str) -> None:
        """Keep a word no longer; succeeds if there is none."""
        with self._writing:
            with self._memory:
                found = self._notes.pop(name, None)
            if found is not None:
                self._save_or_remember([("DELETE FROM notes WHERE name = ?", (name,))])

    # -- memory and disk

    def _take_over(self, found: Contents) -> None:
        for row in found.attachments:
            self._put(row)
        for pool, value, owner, boot in found.claims:
            if boot == self._boot:
                self._hold(pool, value, owner)
        self._notes.update(found.notes)
        if any(boot != self._boot for *_, boot in found.claims):
            self._save_or_remember([("DELETE FROM claims WHERE boot <> ?", (self._boot,))])

    def _contents(self) -> Contents:
        """Return all that is remembered as the rows of a file; the caller is the one who writes."""
        claims = [
            (pool, value, owner, self._boot)
            for pool, owners in self._owners.items()
            for value, owner in owners.items()
        ]
        return Contents([*self._rows.values()], claims, [*self._notes.items()])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._memory:
            self._refuse_closed()
            yield

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LedgerError("the ledger is closed; open it again")

    def _save(self, statements: Sequence[Statement]) -> None:
        self._refuse_closed()
        if self._file is not None:
            self._file.save(statements, self._contents)

    def _save_or_remember(self, statements: Sequence[Statement]) -> None:
        self._refuse_closed()
        if self._file is not None:
            try:
                self._file.save(statements, self._contents)
            except LedgerError:  # which `problem` tells of
                self._file.save_later(statements)

    def _row(self, entry: Entry, result: Mapping[str, Any] | None) -> Row:
        return (
            *(entry.network, entry.owner, entry.container, self._boot),
            *(_text(entry.configuration), _text(entry.attachment)),
            *(_text(result) if result is not None else None, 0),
        )

    def _put(self, row: Row) -> None:
        network, owner, container, *_ = row
        with self._memory:
            self._disown((network, owner))
            self._rows[network, owner] = row
            self._entries.pop((network, owner), None)
            self._of_container.setdefault(container, {})[network, owner] = None
            self._changes += 1

    def _drop(self, key: _Key) -> None:
        with self._memory:
            self._disown(key)
            del self._rows[key]
            self._entries.pop(key, None)
            self._changes += 1

    def _disown(self, key: _Key) -> None:
        if key in self._rows:
            _, _, container, *_ = self._rows[key]
            others = self._of_container[container]
            del others[key]
            if not others:
                del self._of_container[container]

    def _hold(self, pool: str, value: str, owner: str) -> None:
        self._owners.setdefault(pool, {})[value] = owner
        self._values.setdefault((pool, owner), {})[value] = None

    def _entry(self, key: _Key) -> Entry:
        found = self._entries.get(key)
        if found is None:
            found = self._entries[key] = _entry(self._rows[key], self._boot)
        return found


def _entry(row: Row, boot: str) -> Entry:
    network, owner, container, of_boot, configuration, attachment, result, leaving = row
    faults: list[str] = []
    return Entry(
        network,
        owner,
        container,
        _object(configuration, "configuration", faults),
        _object(attachment, "attachment", faults),
        _object(result, "result", faults) if result is not None else None,
        of_this_boot=of_boot == boot,
        leaving=leaving != 0,
        fault="; ".join(faults),
    )


def _object(text: Any, what: str, faults: list[str]) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    faults.append(f"the {what} is no JSON object")
    return {}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
