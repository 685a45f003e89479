"""The store: records in memory for readers, written through to SQLite by one thread.

Readers look at the mappings and never wait. A change goes as plain values to the writer thread (`writer.py`), which
commits whatever has gathered in its queue as one transaction (group commit).

There are two kinds of change. What is about to be done is recorded first (`apply`): it enters memory after the disk, in the
order of the commits, and if the write fails nothing has changed. What has happened already (`follow`) is true whatever the
disk says: it enters memory at once, and goes to disk as soon as that takes it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar, cast

import structlog

from cri import tracing
from cri.errors import InternalError
from cri.state.database import Write
from cri.state.records import RECORDS, ContainerRecord, ImageRecord, Record, SandboxRecord
from cri.state.rows import Content, Key, Unreadable, row
from cri.state.writer import Change, Writer

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=Record)

CONTENT_PATIENCE = 10.0
"""Seconds that the writer waits for the event loop to say what is in memory."""


class _Pending(Change):
    """One call of `apply` or `follow`."""

    def __init__(
        self,
        saved: Sequence[Record],
        write: Write,
        done: asyncio.Future[bool],
        number: int,
        *,
        followed: bool,
    ) -> None:
        super().__init__(write, followed)
        self.saved = saved
        self.done = done
        self.number = number

    def __str__(self) -> str:
        """The objects, as a message names them."""
        return ", ".join(f"{kind.kind} {key}" for kind, key in self.write.rows)


class Store:
    """All records of a node. Used from the one event loop that opened it."""

    sandboxes: Mapping[str, SandboxRecord]
    containers: Mapping[str, ContainerRecord]
    images: Mapping[str, ImageRecord]
    unreadable: Mapping[Key, Unreadable]
    """Rows of the database that this release does not understand, by kind and key. They are left as they are until a
    record of the same key is saved or deleted, or `delete_unreadable` is called."""
    rebuilt: str = ""
    """Why records may be missing, or be older than what has happened: the database was damaged, or there was none. "" if it
    was found as an earlier daemon left it."""
    new: bool = False
    """There was no database at all, or an empty file: a fresh node, or the file was lost."""

    def __init__(self, path: Path, make_room: Callable[[], bool], took: Callable[[float], object]) -> None:
        self.path = path
        self._content = Content()
        self.sandboxes = self._view(SandboxRecord)
        self.containers = self._view(ContainerRecord)
        self.images = self._view(ImageRecord)
        self.unreadable = MappingProxyType(self._content.unreadable)
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        owner = _Owner(self._loop, self._take, self._fail, self._handled, self._copy)
        self._writer = Writer(path, owner, make_room, took)
        self._number = 0
        self._followed: dict[Key, int] = {}
        """By key, the last change that is in memory before the writer has had it."""
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        make_room: Callable[[], bool] = lambda: False,
        took: Callable[[float], object] = lambda _: None,
    ) -> Self:
        """Read the database, whatever its state: one that is damaged, locked, or of a newer release is put aside or mended.

        Never raises for what the disk holds or does. `make_room` is called in a thread when the disk is full; it frees
        space, or returns False; `took` is told, in the writer's thread, the seconds of each transaction. What became of the
        database is in the log, and in `rebuilt`, `new`, `unreadable` and `problem`.
        """
        store = cls(path, make_room, took)
        store._writer.start()
        await store._opened
        return store

    @property
    def problem(self) -> str:
        """Why the database cannot be written at present; "" if it can, as far as has been tried."""
        return self._writer.problem

    async def close(self) -> None:
        """Write what is queued, try once more what the disk has refused, and close the database."""
        if not self._closed:
            self._closed = True
            self._writer.end()
        await asyncio.to_thread(self._writer.join)

    async def answers(self) -> None:
        """Wait until the writer has dealt with all that has come so far, whatever the disk says to it."""
        if not self._closed:
            change = self._change((), (), followed=True)
            self._writer.put(change)
            await change.done

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
        change = self._change(save, delete, followed=False)
        if not change.write.rows:
            return
        if self._closed:
            raise InternalError(f"cannot record {change}: the state database is closed")
        with tracing.span("write state", objects=change):
            self._writer.put(change)
            await change.done

    async def follow(self, *, save: Iterable[Record] = (), delete: Iterable[Record] = ()) -> None:
        """Record what has happened already, as one transaction. It is in memory at once.

        Returns when the disk has it, or has refused: then the change is kept, and written as soon as that can be, before
        anything that comes later; a later change of the same record makes it void. Never raises for the disk. Raises
        InternalError when a value is of a wrong type.
        """
        change = self._change(save, delete, followed=True)
        with tracing.span("write state", objects=change):
            await self._follow(change)

    def followed(
        self, *, save: Iterable[Record] = (), delete: Iterable[Record] = (), hurried: bool = True
    ) -> asyncio.Future[bool]:
        """As `follow`, for who need not wait: the future is done when `follow` would return.

        The change is in memory on return, and goes to disk whether or not anybody waits; if not `hurried`, in a moment, so that
        the writer is in nobody's way before that. The result is False when it never will, as the database is closed.
        """
        change = self._change(save, delete, followed=True)
        change.hurried = hurried
        return self._follow(change)

    async def delete_unreadable(self, kind: type[Record], key: str) -> None:
        """Delete a row of `unreadable`, as its object is gone; succeeds if it is not there. As `follow` for the disk."""
        found = self.unreadable.get((kind, key))
        if found is None:
            return
        change = self._change((), (), followed=True)
        raw = found.values.get("id")
        if raw == key:
            change.write.rows[kind, key] = None
        else:
            change.write.raw = ((kind, raw),)
        del self._content.unreadable[kind, key]
        await self._follow(change)

    def _follow(self, change: _Pending) -> asyncio.Future[bool]:
        if not change.write.rows and not change.write.raw:
            change.done.set_result(True)
            return change.done
        self._remember(change)
        for key in change.write.rows:
            self._followed[key] = change.number
        if self._closed:
            log.error("what has happened is not recorded: the state database is closed", objects=str(change))
            change.done.set_result(False)
            return change.done
        self._writer.put(change)
        return change.done

    def _change(self, save: Iterable[Record], delete: Iterable[Record], *, followed: bool) -> _Pending:
        saved = [_validated(record) for record in save]
        rows: dict[Key, dict[str, Any] | None] = {
            (type(record), record.key): values for record, values in saved
        }
        rows.update({(type(record), record.key): None for record in delete})
        self._number += 1
        return _Pending(
            [record for record, _ in saved],
            Write(rows),
            self._loop.create_future(),
            self._number,
            followed=followed,
        )

    def _view(self, kind: type[R]) -> Mapping[str, R]:
        return MappingProxyType(cast("dict[str, R]", self._content.tables[kind]))

    def _remember(self, change: _Pending) -> None:
        """Bring memory to a change, but not where a later one has been followed."""
        saved = {(type(record), record.key): record for record in change.saved}
        for place, values in change.write.rows.items():
            if self._followed.get(place, 0) > change.number:
                continue
            kind, key = place
            self._content.unreadable.pop(place, None)
            if values is None:
                self._content.tables[kind].pop(key, None)
            else:
                self._content.tables[kind][key] = saved[place]

    # What the writer tells, on the loop.

    def _take(self, content: Content, rebuilt: str, new: bool) -> None:
        for kind in RECORDS:
            self._content.tables[kind].update(content.tables[kind])
        self._content.unreadable.update(content.unreadable)
        for one in content.unreadable.values():
            log.error(
                "a record cannot be understood; it is left as it is",
                database=str(self.path),
                record=f"{one.kind.kind} {one.key}",
                reason=one.reason,
            )
        self.rebuilt, self.new = rebuilt, new
        if not self._opened.done():
            self._opened.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)

    def _handled(self, changes: Sequence[_Pending]) -> None:
        for change in changes:
            if change.followed:
                for key in change.write.rows:
                    if self._followed.get(key) == change.number:
                        del self._followed[key]
            elif change.error is None:
                self._remember(change)
            if change.done.done():  # cancelled: the caller has gone, the change has not
                continue
            if change.error is None or change.followed:
                change.done.set_result(True)
            else:
                failure = InternalError(f"cannot record {change} in {self.path}: {_reason(change.error)}")
                failure.__cause__ = change.error
                change.done.set_exception(failure)

    def _copy(self, into: concurrent.futures.Future[Content]) -> None:
        tables = {kind: dict(records) for kind, records in self._content.tables.items()}
        into.set_result(Content(tables, dict(self._content.unreadable)))


class _Owner:
    """The store, as its writer knows it: calls go over to the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[Content, str, bool], None],
        fail: Callable[[Exception], None],
        handle: Callable[[Sequence[_Pending]], None],
        copy: Callable[[concurrent.futures.Future[Content]], None],
    ) -> None:
        self._loop = loop
        self._take = take
        self._fail = fail
        self._handle = handle
        self._copy = copy

    def opened(self, content: Content, rebuilt: str, *, new: bool) -> None:
        self._tell(self._take, content, rebuilt, new)

    def failed(self, error: Exception) -> None:
        self._tell(self._fail, error)

    def handled(self, changes: Sequence[Change]) -> None:
        self._tell(self._handle, cast("Sequence[_Pending]", changes))

    def content(self) -> Content | None:
        found: concurrent.futures.Future[Content] = concurrent.futures.Future()
        self._tell(self._copy, found)
        try:
            return found.result(CONTENT_PATIENCE)
        except TimeoutError:
            return None

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody is there to hear it
            self._loop.call_soon_threadsafe(function, *arguments)


def _validated(record: R) -> tuple[R, dict[str, Any]]:
    """A checked copy, and its row."""
    try:
        copy = record.checked()
        return copy, row(copy)
    except (KeyError, TypeError, ValueError) as error:
        key = record.__dict__.get("id")
        raise InternalError(f"cannot record {record.kind} {key}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The error, in words."""
    if isinstance(error, KeyError):
        return f"field {error} is missing"
    return str(error)
