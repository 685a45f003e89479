"""The file of a ledger: SQLite that opens in whatever state it is found, and is made anew where it cannot be used.

The ledger works from memory (`ledger.py`), so the file is written to, and read once. Whatever is wrong with it, what can be
read is taken over into a new file, and the old one is put aside for whoever wants to know. Where no file can be written at
all (a disk that is full, read-only or broken) the ledger goes on in memory, and every later change tries again.

WAL mode without a sync per commit: a killed process loses nothing, and a power cut takes the kernel's side, too.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from cni_plugins import ledger_rescue as rescue
from cni_plugins.errors import LedgerError
from cni_plugins.ledger_rescue import SCHEMA_VERSION, Contents, UnusableError

log = logging.getLogger("cni_plugins")

Statement: TypeAlias = tuple[str, Sequence[object]]
_Done = TypeVar("_Done")

BUSY_SECONDS = 2.0
"""How long another process may keep the file locked."""
_LITTLE_ROOM = 1 << 20  # bytes; SQLite tells by the one word "I/O error" of a disk that is full, too
_PARTS = ("", "-wal", "-shm", "-journal")
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


class LedgerFile:
    """A ledger's file. Not safe for threads. `make_room` may give up something on a full disk; it tells whether it did."""

    def __init__(self, path: Path, make_room: Callable[[], bool]) -> None:
        self._path = path
        self._make_room = make_room
        self._database: sqlite3.Connection | None = None
        self._pending: list[Statement] = []
        self.rebuilt = False
        """It is not the file that an earlier process has left whole: there was none, or it could not be used."""
        self.problem = ""
        """Why the latest change could not be written; empty if it was."""

    def open(self) -> Contents:
        """Return what the file has, or what can be read of it. Never raises."""
        try:
            rescue.refuse_other_types([self._path.with_name(self._path.name + part) for part in _PARTS])
            found = self._with_room(self._use)
        except (UnusableError, sqlite3.Error, OSError) as error:
            self.rebuilt = True
            found = rescue.salvage(self._path)
            log.error(
                "ledger %s cannot be used: %s; read of it: %d attachments, %d claims, %d notes",
                *(self._path, error, len(found.attachments), len(found.claims), len(found.notes)),
            )
            self._go_on_with(lambda: found)
        return found

    def save(self, statements: Sequence[Statement], contents: Callable[[], Contents]) -> None:
        """Write a change, and what could not be written before. Raises LedgerError; then nothing of the change is.

        `contents` are what the file is to have before the change, should it have to be made anew.
        """
        for last in (False, True):
            if self._database is None:
                self._go_on_with(contents)
            if self._database is None:
                raise LedgerError(self.problem)
            try:
                self._with_room(lambda: self._commit([*self._pending, *statements]))
            except (sqlite3.Error, OSError) as error:
                if last or self._is_full(error):
                    raise self._failed(error) from error
                log.error("ledger %s cannot be written: %s; it is made anew", self._path, error)
                self._disconnect()
            else:
                self._pending.clear()
                self._recovered()
                return

    def save_later(self, statements: Sequence[Statement]) -> None:
        """Write a change with the next one that can be written: its effect is in the memory already."""
        self._pending += statements

    def close(self) -> None:
        """Close the file."""
        self._disconnect()

    def _use(self) -> Contents:
        """Open the file as it is, or make one where there is none. Raises UnusableError, sqlite3.Error, OSError."""
        fresh = not self._path.exists() or not self._path.stat().st_size
        if fresh:
            stray = self._path.with_name(f"{self._path.name}-wal")
            if stray.exists() and stray.stat().st_size:
                raise UnusableError(f"it is not there or empty, though {stray.name} is")
        self._path.touch(mode=0o600)  # SQLite's own files beside it take its mode
        database = _connect(self._path)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            if fresh:
                _create(database)
            found = rescue.checked(database)
            database.execute("BEGIN IMMEDIATE")  # somebody may hold a lock that lets us read
            database.execute("ROLLBACK")
        except BaseException:
            database.close()
            raise
        self.rebuilt = self.rebuilt or fresh
        self._database = database
        return found

    def _go_on_with(self, contents: Callable[[], Contents]) -> None:
        """Make a new file of what is known, and put the old one aside; without one if that cannot be done."""
        try:
            self._with_room(lambda: self._make_anew(contents()))
            self._use()
        except (UnusableError, sqlite3.Error, OSError) as error:
            self._disconnect()
            self._failed(error)
        else:
            self._pending.clear()
            self._recovered()

    def _make_anew(self, contents: Contents) -> None:
        fresh = self._path.with_name(f"{self._path.name}.new")
        for part in _PARTS:
            rescue.remove(fresh.with_name(fresh.name + part))
        fresh.touch(mode=0o600)
        database = _connect(fresh)
        try:
            _create(database)
            database.execute("BEGIN")
            database.executemany(
                "INSERT OR IGNORE INTO attachments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", contents.attachments
            )
            database.executemany(
                "INSERT OR IGNORE INTO claims (pool, value, owner, boot) VALUES (?, ?, ?, ?)", contents.claims
            )
            database.executemany("INSERT OR IGNORE INTO notes VALUES (?, ?)", contents.notes)
            database.execute("COMMIT")
        finally:
            database.close()
        # Only now: a failure before has changed nothing.
        aside = rescue.put_aside(self._path, _PARTS)
        fresh.rename(self._path)
        if aside is not None:
            log.error("what could not be used is put aside as %s; %s is a new one", aside, self._path)

    def _commit(self, statements: Sequence[Statement]) -> None:
        database = self._database
        assert database is not None
        database.execute("BEGIN IMMEDIATE")
        try:
            for query, values in statements:
                database.execute(query, values)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # a full disk has ended it already
                database.execute("ROLLBACK")
            raise

    def _with_room(self, work: Callable[[], _Done]) -> _Done:
        """Do something; if the disk is full and something can be given up, once again."""
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            if not self._is_full(error) or not self._make_room():
                raise
        return work()

    def _is_full(self, error: Exception) -> bool:
        if isinstance(error, OSError):
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return code == sqlite3.SQLITE_FULL
        try:
            room = os.statvfs(self._path.parent)
        except OSError:
            return False
        return not room.f_flag & os.ST_RDONLY and room.f_bavail * room.f_frsize < _LITTLE_ROOM

    def _failed(self, error: Exception) -> LedgerError:
        problem = f"cannot write the ledger {self._path}: {error}; look at the disk, its room and its rights"
        if problem != self.problem:
            log.error("%s. What is taken back is remembered, and nothing new can be attached", problem)
        self.problem = problem
        return LedgerError(problem)

    def _recovered(self) -> None:
        if self.problem:
            log.warning("the ledger %s can be written again", self._path)
        self.problem = ""

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except sqlite3.Error as error:  # of the last checkpoint, which the next one to open it makes
                log.warning("ledger %s: %s", self._path, error)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
    database.text_factory = rescue.decode
    return database


def _create(database: sqlite3.Connection) -> None:
    database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
