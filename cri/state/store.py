"""The store: records in memory for readers, written through to SQLite by one thread.

Readers look at the mappings and never wait. A change goes as plain values to the writer thread, which commits whatever
has gathered in its queue as one transaction (group commit), and enters memory, in the order of the commits, before
`apply` returns. If the write fails nothing has changed, on disk or in memory.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar, cast

from sqlalchemy import JSON, ClauseElement, Delete, Table, bindparam, delete, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import Insert, insert

from cri.errors import InternalError
from cri.state.errors import StateError
from cri.state.migrations import migrate
from cri.state.records import RECORDS, ContainerRecord, ImageRecord, Record, SandboxRecord

R = TypeVar("R", bound=Record)
Tables = dict[type[Record], dict[str, Record]]


@dataclass(slots=True)
class _Change:
    """One call of `apply` on its way to the disk."""

    done: asyncio.Future[None]
    saved: Sequence[Record]
    rows: Sequence[tuple[type[Record], dict[str, Any]]]
    deleted: Sequence[tuple[type[Record], str]]
    error: Exception | None = None

    def __str__(self) -> str:
        """The objects, as a message names them."""
        names = [f"{record.kind} {record.key}" for record in self.saved]
        names += [f"{kind.kind} {key}" for kind, key in self.deleted]
        return ", ".join(names)


class Store:
    """All records of a node. Used from the one event loop that opened it."""

    sandboxes: Mapping[str, SandboxRecord]
    containers: Mapping[str, ContainerRecord]
    images: Mapping[str, ImageRecord]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables: Tables = {kind: {} for kind in RECORDS}
        self.sandboxes = self._view(SandboxRecord)
        self.containers = self._view(ContainerRecord)
        self.images = self._view(ImageRecord)
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="state-writer", daemon=True)
        self._opened: asyncio.Future[Tables] = self._loop.create_future()
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or make the database, bring it to the newest schema, and read all of it.

        Raises StateError when the file is damaged, of a newer release, or cannot be opened.
        """
        store = cls(path)
        store._thread.start()
        for kind, records in (await store._opened).items():
            store._tables[kind].update(records)
        return store

    async def close(self) -> None:
        """Write what is queued and close the database."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def save(self, *records: Record) -> None:
        """Insert or replace records; see `apply`."""
        await self.apply(save=records)

    async def delete(self, *records: Record) -> None:
        """Delete records, succeeding on those that are gone; see `apply`."""
        await self.apply(delete=records)

    async def apply(self, *, save: Iterable[Record] = (), delete: Iterable[Record] = ()) -> None:
        """Insert or replace some records and delete others, as one transaction: all of it happens or nothing.

        The records are copied before the call first waits; the store keeps the copies. A caller that is cancelled while
        it waits does not take the change back. Raises InternalError, naming the objects, when a value is of a wrong type
        or the disk refuses.
        """
        saved = [_validated(record) for record in save]
        change = _Change(
            done=self._loop.create_future(),
            saved=[record for record, _ in saved],
            rows=[(type(record), row) for record, row in saved],
            deleted=[(type(record), record.key) for record in delete],
        )
        if not change.rows and not change.deleted:
            return
        if self._closed:
            raise InternalError(f"cannot record {change}: the state database is closed")
        self._queue.put(change)
        await change.done

    async def follow(self, *, save: Iterable[Record] = (), delete: Iterable[Record] = ()) -> None:
        """Record what has happened already; see `apply`."""
        await self.apply(save=save, delete=delete)

    def _view(self, kind: type[R]) -> Mapping[str, R]:
        return MappingProxyType(cast("dict[str, R]", self._tables[kind]))

    def _committed(self, changes: Sequence[_Change]) -> None:
        """Bring memory to what the writer has committed; runs on the loop, in the order of the commits."""
        for change in changes:
            if change.error is None:
                for record in change.saved:
                    self._tables[type(record)][record.key] = record
                for kind, key in change.deleted:
                    self._tables[kind].pop(key, None)
            if change.done.done():  # cancelled: the caller has gone, the change has not
                continue
            if change.error is None:
                change.done.set_result(None)
            else:
                failure = InternalError(f"cannot record {change} in {self.path}: {_reason(change.error)}")
                failure.__cause__ = change.error
                change.done.set_exception(failure)

    # The writer thread, from here on.

    def _write(self) -> None:
        """The life of the writer: open, load, then commit what comes until told to stop."""
        database: _Database | None = None
        try:
            database = _Database(self.path)
            tables = database.load()
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller of `open`
            if database is not None:
                database.close()
            self._tell(self._fail_open, error)
            return
        self._tell(self._opened.set_result, tables)
        running = True
        while running:
            changes, running = self._gather()
            if changes:
                database.write(changes)
                self._tell(self._committed, changes)
        database.close()

    def _gather(self) -> tuple[list[_Change], bool]:
        """Wait for a change; take all that have come meanwhile. False: there will be no more."""
        changes: list[_Change] = []
        item = self._queue.get()
        while item is not None:
            changes.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return changes, True
        return changes, False

    def _tell(self, function: Any, argument: object) -> None:
        self._loop.call_soon_threadsafe(function, argument)

    def _fail_open(self, error: Exception) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)


class _Database:
    """The connection and its statements. Belongs to the writer thread.

    SQLAlchemy makes the statements out of the models, once; sqlite3 runs them, in a fifth of the time that a statement
    takes through SQLAlchemy's engine.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Configs hold secrets. SQLite gives its other files the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, isolation_level=None)
        except OSError as error:
            raise StateError(f"cannot open the state database {path}: {error.strerror}") from error
        except sqlite3.Error as error:
            raise StateError(f"cannot open the state database {path}: {error}") from error
        try:
            migrate(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL lets a power loss take the last commits, never the file's integrity. That is enough: a power loss is
            # a reboot, which takes the kernel's side of every record too, and a daemon's death loses nothing.
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            connection.close()
            raise StateError(f"cannot open the state database {path}: {error}") from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._upserts = {kind: _sql(_upsert(_table(kind))) for kind in RECORDS}
        self._deletes = {kind: _sql(_delete(_table(kind))) for kind in RECORDS}

    def load(self) -> Tables:
        """Every record there is."""
        return {kind: {record.key: record for record in self._records(kind)} for kind in RECORDS}

    def _records(self, kind: type[Record]) -> Iterator[Record]:
        cursor = self._connection.execute(_sql(select(_table(kind))))
        names = [column[0] for column in cursor.description]
        for row in cursor:
            values = dict(zip(names, row, strict=True))
            for name in _json_columns(kind):
                values[name] = None if values[name] is None else json.loads(values[name])
            yield kind.model_validate(values)

    def write(self, changes: Sequence[_Change]) -> None:
        """Commit changes together; if that fails each by itself, so that none suffers for another's fault."""
        try:
            self._commit(changes)
        except Exception as error:  # noqa: BLE001 - the writer must live; the error belongs to whoever asked for the change
            if len(changes) == 1:
                changes[0].error = error
                return
            for change in changes:
                self.write([change])

    def _commit(self, changes: Sequence[_Change]) -> None:
        # IMMEDIATE: it will write, so wait for a lock (someone's sqlite3 shell) now and do not fail in the middle.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                for kind, values in change.rows:
                    self._connection.execute(self._upserts[kind], values)
                for kind, key in change.deleted:
                    self._connection.execute(self._deletes[kind], {"key": key})
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connection; SQLite folds the log back into the file."""
        self._connection.close()


def _table(kind: type[Record]) -> Table:
    return cast("Table", kind.__table__)  # type: ignore[attr-defined]  # set by SQLModel on table models


def _upsert(table: Table) -> Insert:
    statement = insert(table)
    keys = table.primary_key.columns.keys()
    changes = {
        column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys
    }
    return statement.on_conflict_do_update(index_elements=keys, set_=changes)


def _delete(table: Table) -> Delete:
    (key,) = table.primary_key.columns
    return delete(table).where(key == bindparam("key"))


def _sql(statement: ClauseElement) -> str:
    """The statement as text, with `:name` parameters."""
    return str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))


@functools.cache
def _json_columns(kind: type[Record]) -> tuple[str, ...]:
    return tuple(column.name for column in _table(kind).columns if isinstance(column.type, JSON))


def _row(record: Record) -> dict[str, Any]:
    """The record's values as SQLite takes them."""
    row = record.values()
    for name in _json_columns(type(record)):
        row[name] = None if row[name] is None else json.dumps(row[name])
    return row


def _validated(record: R) -> tuple[R, dict[str, Any]]:
    """A checked copy, and its row."""
    try:
        copy = record.checked()
        return copy, _row(copy)
    except (KeyError, TypeError, ValueError) as error:
        key = record.__dict__.get("id") or record.__dict__.get("address")
        raise InternalError(f"cannot record {record.kind} {key}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The error, in words."""
    if isinstance(error, KeyError):
        return f"field {error} is missing"
    return str(error)
