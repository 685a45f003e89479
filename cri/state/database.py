"""The database: its connection and statements. Belongs to the one thread that opens it.

SQLAlchemy makes the statements out of the models, once; sqlite3 runs them, in a fifth of the time that a statement takes
through SQLAlchemy's engine.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sqlalchemy import ClauseElement, Delete, Table, bindparam, delete, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import Insert, insert

from cri.state.migrations import MIGRATIONS, migrate, schema_version
from cri.state.records import RECORDS, Record, table
from cri.state.rows import Content, Key, Unreadable, row, text

BUSY_SECONDS = 5.0
"""What others who hold the database locked are waited for."""

IN_USE = 0x43524921
"""The application id (a word of the database's header) while a daemon has it open; 0 once that has closed it. If it is
there and the log is not, the log was lost."""

_SUFFIXES = ("", "-wal")
_ROOM = 256 * 1024
"""Bytes; with less free, an I/O error is taken for a full disk."""


@dataclass(slots=True)
class Write:
    """What is to be written together."""

    rows: dict[Key, dict[str, Any] | None] = field(default_factory=dict)
    """What becomes of each record: its new values, or None if it goes."""
    raw: Sequence[tuple[type[Record], object]] = ()
    """Primary keys, as the database has them, of unreadable rows that go."""


class Database:
    """An open database, known to be whole and of a schema that records fit into.

    Methods raise sqlite3.Error, unless they say otherwise.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._upserts = {kind: _sql(_upsert(table(kind))) for kind in RECORDS}
        self._deletes = {kind: _sql(_delete(table(kind))) for kind in RECORDS}
        self._files: dict[Path, tuple[int, int]] = {}

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Open a file or make it; nothing is known of it yet. Raises OSError, too."""
        # Configs hold secrets. SQLite gives its other files the mode of this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.text_factory = text
        return cls(path, connection)

    def _pragma(self, words: str) -> tuple[Any, ...]:
        # To its end: one of which a row is left to read keeps the connection from what comes next.
        rows = self._connection.execute(f"PRAGMA {words}").fetchall()
        return rows[0] if rows else ()

    def close(self) -> None:
        """Close the connection; SQLite folds the log back into the file."""
        self._connection.close()

    def use_log(self) -> None:
        """Have changes go to a log first (WAL), so that readers and a checkpoint do not wait for each other."""
        self._pragma("journal_mode = WAL")
        # NORMAL lets a power loss take the last commits, never the file's integrity. That is enough: a power loss is a
        # reboot, which takes the kernel's side of every record too, and a daemon's death loses nothing.
        self._pragma("synchronous = NORMAL")
        self._pragma("temp_store = MEMORY")  # else a write may need another file, on another disk

    def finding(self) -> str:
        """What is wrong with the file, or ""."""
        (found,) = self._pragma("integrity_check(1)")
        return "" if found == "ok" else " ".join(str(found).split())

    @property
    def version(self) -> int:
        """Its schema version."""
        return schema_version(self._connection)

    @property
    def is_newer(self) -> bool:
        """Whether a newer release has made it."""
        return self.version > len(MIGRATIONS)

    def migrate(self) -> None:
        """Bring it to this release's schema. Raises StateError."""
        migrate(self._connection, self.path)

    def misfit(self) -> str:
        """Why records cannot be written into the tables that there are, or ""; tries it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for kind in RECORDS:
                values = _sample(kind)
                self._connection.execute(self._upserts[kind], values)
                self._connection.execute(self._upserts[kind], values)
                self._connection.execute(self._deletes[kind], {"key": values["id"]})
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            if is_refusal(error) or is_locked(error):
                raise
            return str(error)
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        return ""

    def content(self) -> Content:
        """Every row there is."""
        content = Content()
        for kind in RECORDS:
            cursor = self._connection.execute(_sql(select(table(kind))))
            names = [column[0] for column in cursor.description]
            for values in cursor:
                content.add(kind, dict(zip(names, values, strict=True)))
        return content

    def fill(self, content: Content) -> list[Unreadable]:
        """Write all of it into an empty database; return the unreadable rows that it does not take."""
        refused = []
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for record in content.records():
                self._connection.execute(self._upserts[type(record)], row(record))
            for one in content.unreadable.values():
                values = {
                    name: one.values[name]
                    for name in table(one.kind).columns.keys()  # noqa: SIM118 - no dict
                    if name in one.values
                }
                names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
                statement = f"INSERT INTO {table(one.kind).name} ({names}) VALUES ({marks})"  # noqa: S608 - our own names
                try:
                    self._connection.execute(statement, values)
                except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
                    if is_refusal(error):
                        raise
                    refused.append(one)
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        return refused

    def begin(self) -> int:
        """Get ready to write; return how many frames the log has of earlier daemons."""
        frames = self.checkpoint()
        self.touch()
        self.checkpoint()
        for suffix in _SUFFIXES:
            file = Path(f"{self.path}{suffix}")
            found = file.lstat()
            self._files[file] = found.st_dev, found.st_ino
        return frames

    def lost(self) -> str:
        """Why what is written does not get where the next daemon will look for it, or "". Costs a look at two files."""
        for file, known in self._files.items():
            try:
                found = file.lstat()
            except OSError as error:
                return f"{file.name}: {error.strerror}"
            if (found.st_dev, found.st_ino) != known:
                return f"{file.name} is another file than the one that the daemon has open"
        return ""

    def checkpoint(self) -> int:
        """Fold the log into the file, so that little is lost with it; return how many frames it has had."""
        _, frames, _ = self._pragma("wal_checkpoint(PASSIVE)")
        return int(frames)

    def touch(self) -> None:
        """Write something that changes nothing."""
        self._pragma(f"application_id = {IN_USE}")

    def finish(self) -> None:
        """Write down that nothing is in the log which is not in the file; `close` comes next."""
        self._pragma("application_id = 0")

    def write(self, writes: Iterable[Write]) -> None:
        """Commit all of it together, or nothing."""
        # IMMEDIATE: it will write, so wait for a lock (someone's sqlite3 shell) now and do not fail in the middle.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for one in writes:
                for (kind, key), values in one.rows.items():
                    if values is None:
                        self._connection.execute(self._deletes[kind], {"key": key})
                    else:
                        self._connection.execute(self._upserts[kind], values)
                for kind, raw in one.raw:
                    self._connection.execute(f"DELETE FROM {table(kind).name} WHERE id IS ?", (raw,))  # noqa: S608 - our own name
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def is_full(error: Exception, path: Path) -> bool:
    """Whether the disk was full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return True
    if code not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM or bool(found.f_files and not found.f_favail)


def is_no_room(error: Exception) -> bool:
    """Whether SQLite itself says that there was no room for this."""
    return _code(error) == sqlite3.SQLITE_FULL


def is_refusal(error: Exception) -> bool:
    """Whether it is the disk that refused, for all that might be written."""
    if isinstance(error, OSError):
        return True
    return _code(error) in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
    )


def is_locked(error: Exception) -> bool:
    """Whether another process holds the database locked."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_damage(error: Exception) -> bool:
    """Whether the file is damaged, or none of SQLite's."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def with_room(action: Callable[[], None], path: Path, make_room: Callable[[], bool]) -> None:
    """Do it; if the disk is full and room can be made, do it again."""
    try:
        action()
    except (sqlite3.Error, OSError) as error:
        if not is_full(error, path) or not make_room():
            raise
        action()


def _code(error: Exception) -> int:
    """The primary result code of an error of SQLite's; of others 0."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _sample(kind: type[Record]) -> dict[str, Any]:
    """Values that any table of such records takes."""
    values = {column.name: None if column.nullable else "" for column in table(kind).columns}
    return values | {"id": " sample"}


def _upsert(of: Table) -> Insert:
    statement = insert(of)
    keys = of.primary_key.columns.keys()
    changes = {
        column.name: statement.excluded[column.name] for column in of.columns if column.name not in keys
    }
    return statement.on_conflict_do_update(index_elements=keys, set_=changes)


def _delete(of: Table) -> Delete:
    (key,) = of.primary_key.columns
    return delete(of).where(key == bindparam("key"))


def _sql(statement: ClauseElement) -> str:
    """The statement as text, with `:name` parameters."""
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))
