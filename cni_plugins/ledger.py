"""What must survive the process: which attachments there are, and who holds what only one may have.

An attachment is written down before anything of it is made and struck out after all of it is gone, so whatever a crash
leaves has an owner that can be found. The same goes for claims: addresses of a range, ports of the node. A claim is of one
boot; those of earlier boots are void, as what they stood for went with the kernel.

SQLite in WAL mode, without a sync per commit: a killed process loses nothing, and a power cut takes the kernel's side too.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cni_plugins.errors import ClaimedError, LedgerError

_Index = TypeVar("_Index")

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE attachments (
    network TEXT NOT NULL,
    owner TEXT NOT NULL,
    container TEXT NOT NULL,
    boot TEXT NOT NULL,
    configuration TEXT NOT NULL,
    attachment TEXT NOT NULL,
    result TEXT,
    leaving INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (network, owner)
) WITHOUT ROWID;
CREATE INDEX attachments_by_container ON attachments (container);
CREATE TABLE claims (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    pool TEXT NOT NULL,
    value TEXT NOT NULL,
    owner TEXT NOT NULL,
    boot TEXT NOT NULL,
    UNIQUE (pool, value)
);
CREATE INDEX claims_by_owner ON claims (pool, owner);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


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

    @property
    def whole(self) -> bool:
        """It was made, and nothing of it has been taken back."""
        return self.result is not None and self.of_this_boot and not self.leaving


class Ledger:
    """A ledger in a file, or in memory without one. Safe for threads; blocks for well under a millisecond.

    `boot` tells one boot of the node from another. Only one process at a time may have a file open. Every method raises
    LedgerError.
    """

    def __init__(self, path: Path | None, boot: str) -> None:
        self._where = str(path or ":memory:")
        self._boot = boot
        self._lock = threading.Lock()
        self._indexing = threading.Lock()
        self._indexes: dict[str, Any] = {}
        with self._errors("open"):
            if path is not None:
                path.touch(mode=0o600)  # SQLite's own files beside it take its mode
            self._database = sqlite3.connect(self._where, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._prepare()

    def close(self) -> None:
        """Close the file, once nobody is at it."""
        with self._lock:
            self._database.close()

    # -- attachments

    def begin(self, entry: Entry) -> bool:
        """Write an attachment down that is about to be made; False if it is there."""
        values = (
            *(entry.network, entry.owner, entry.container, self._boot),
            *(_text(entry.configuration), _text(entry.attachment)),
        )
        with self._transaction("write") as database:
            query = "INSERT OR IGNORE INTO attachments VALUES (?, ?, ?, ?, ?, ?, NULL, 0)"
            return bool(database.execute(query, values).rowcount)

    def finish(self, network: str, owner: str, result: Mapping[str, Any]) -> None:
        """Add the result of what `begin` has announced."""
        with self._transaction("write") as database:
            database.execute(
                "UPDATE attachments SET result = ? WHERE network = ? AND owner = ?",
                (_text(result), network, owner),
            )

    def leave(self, network: str, owner: str) -> None:
        """Write down that an attachment is about to be taken back: if that is cut short, it is not whole any more."""
        with self._transaction("write") as database:
            database.execute(
                "UPDATE attachments SET leaving = 1 WHERE network = ? AND owner = ?", (network, owner)
            )

    def forget(self, network: str, owner: str) -> None:
        """Strike an attachment out; succeeds if it is not there."""
        with self._transaction("write") as database:
            database.execute("DELETE FROM attachments WHERE network = ? AND owner = ?", (network, owner))

    def entry(self, network: str, owner: str) -> Entry | None:
        """Return one attachment."""
        rows = self._rows("SELECT * FROM attachments WHERE network = ? AND owner = ?", network, owner)
        return self._entry(rows[0]) if rows else None

    def entries(self, *, container: str | None = None) -> list[Entry]:
        """Return all attachments, or a container's, in no particular order."""
        if container is None:
            return [self._entry(row) for row in self._rows("SELECT * FROM attachments")]
        return [
            self._entry(row) for row in self._rows("SELECT * FROM attachments WHERE container = ?", container)
        ]

    # -- claims

    def claim(self, pool: str, value: str, owner: str) -> None:
        """Write down that a value of a pool is an owner's; it may be so already.

        Raises ClaimedError if it is another one's, whom the message names.
        """
        self.claim_all(pool, (value,), owner)

    def claim_all(
        self, pool: str, values: Sequence[str], owner: str, notes: Mapping[str, str] | None = None
    ) -> None:
        """Claim several values, or none of them, and keep notes with them. Raises ClaimedError."""
        with self._transaction("write") as database:
            for value in values:
                inserted = database.execute(
                    "INSERT INTO claims (pool, value, owner, boot) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (pool, value, owner, self._boot),
                )
                if not inserted.rowcount:
                    query = "SELECT owner FROM claims WHERE pool = ? AND value = ?"
                    (holder,) = database.execute(query, (pool, value)).fetchone()
                    if holder != owner:
                        raise ClaimedError(
                            f"{value} in {pool}, wanted by {owner}, belongs to {holder}; delete that one first"
                        )
            database.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?)", (notes or {}).items())

    def release(self, pool: str, owner: str) -> list[str]:
        """Give back all that an owner has of a pool; return what that was."""
        with self._transaction("write") as database:
            rows = database.execute(
                "DELETE FROM claims WHERE pool = ? AND owner = ? RETURNING value", (pool, owner)
            )
            return [value for (value,) in rows.fetchall()]

    def claims(self, pool: str) -> list[tuple[str, str]]:
        """Return every claimed value of a pool with its owner, oldest claim first."""
        return self._rows("SELECT value, owner FROM claims WHERE pool = ? ORDER BY number", pool)

    def pools(self, prefix: str) -> list[str]:
        """Return the pools whose names begin so and of which something is claimed."""
        query = "SELECT DISTINCT pool FROM claims WHERE substr(pool, 1, ?) = ?"
        return [pool for (pool,) in self._rows(query, len(prefix), prefix)]

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
        """Keep a word for later."""
        with self._transaction("write") as database:
            database.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """Return what was kept under a name."""
        rows = self._rows("SELECT value FROM notes WHERE name = ?", name)
        return rows[0][0] if rows else None

    def _prepare(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise LedgerError(
                f"ledger {self._where} is of a later release (schema {version}); run that one, or move it away"
            )
        if version == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")
        self._database.execute("DELETE FROM claims WHERE boot <> ?", (self._boot,))

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        network, owner, container, boot, configuration, attachment, result, leaving = row
        return Entry(
            network,
            owner,
            container,
            json.loads(configuration),
            json.loads(attachment),
            json.loads(result) if result is not None else None,
            of_this_boot=boot == self._boot,
            leaving=bool(leaving),
        )

    def _rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock, self._errors("read"):
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self, operation: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors(operation):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(
                f"cannot {operation} the ledger {self._where}: {error}; look at the disk and its rights"
            ) from error


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
