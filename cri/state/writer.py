"""The writer: the one thread that has the database open, and commits what comes.

It keeps what has happened already and the disk refuses, tries again with the next change and every few seconds, and
finds its way back when the database is damaged, replaced or removed under it: then the records in memory are the truth.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from cri.state.database import (
    Database,
    Write,
    is_damage,
    is_full,
    is_locked,
    is_no_room,
    is_refusal,
    with_room,
)
from cri.state.opening import DAMAGED, RefusedError, UnusableError, open_database, rebuild
from cri.state.rows import Content, Key, row
from cri.state.salvage import salvage_file

log = structlog.get_logger(__name__)

RETRY_SECONDS = 2.0
"""Between two attempts to write what the disk has refused."""
LEISURE_SECONDS = 0.002
"""What a change that nobody waits for may wait for others: whoever made it has its answer sent by then."""
IDLE_SECONDS = 2.0
"""Without a change, until the log is folded into the database, so that little is lost with it."""


@dataclass(slots=True, eq=False)
class Change:
    """A change on its way to the disk."""

    write: Write
    followed: bool = False
    """It has happened already, and must not be lost."""
    error: Exception | None = None
    """Why it has not been written, if it has not."""
    hurried: bool = True
    """Somebody waits for it."""


class Owner(Protocol):
    """Whom the writer works for. It is called in the writer's thread."""

    def opened(self, content: Content, rebuilt: str, *, new: bool) -> None:
        """Take what the database holds; called once, first."""

    def failed(self, error: Exception) -> None:
        """Take note, instead of `opened`, that the writer cannot work: it has an error of its own."""

    def handled(self, changes: Sequence[Change]) -> None:
        """Take note that these have been written, or have their error; in the order of the commits."""

    def content(self) -> Content | None:
        """Say what the database is to hold by what was handled, or has happened already; None if nobody knows now."""


class Writer:
    """The thread. `problem` says why the database cannot be written at present; "" if it can."""

    def __init__(
        self, path: Path, owner: Owner, make_room: Callable[[], bool], took: Callable[[float], object]
    ) -> None:
        """`took` is told, in the thread, the seconds of each transaction."""
        self.problem = ""
        self._took = took
        self._path = path
        self._owner = owner
        self._make_room = make_room
        self._queue: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._database: Database | None = None
        self._unusable: UnusableError | None = None
        """Why the database must be made anew of what is in memory, until that is done."""
        self._kept: list[Change] = []
        self._all_known = False
        """All that was in the database is known."""
        self._unfolded = False
        self._next_attempt = 0.0
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="state-writer", daemon=True)

    def start(self) -> None:
        """Begin; the owner hears when the database is open."""
        self._thread.start()

    def put(self, change: Change) -> None:
        """Have it written after all that came before."""
        self._queue.put(change)

    def end(self) -> None:
        """Write what is queued and kept, and close the database."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _run(self) -> None:
        self._open()
        running = True
        while running:
            changes, running = self._gather()
            if changes:
                self._handle(changes)
                self._owner.handled(changes)
            elif running:
                self._rest()
        self._end()

    def _open(self) -> None:
        try:
            opened = open_database(self._path, self._make_room)
        except RefusedError as refused:
            self._refused(refused)
            new = not os.path.lexists(self._path)
            content = salvage_file(self._path)
            rebuilt = "there was none" if new else refused.finding or "; ".join(content.losses)
            self._all_known = not content.losses
            self._owner.opened(content, rebuilt, new=new)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller of `open`
            self._owner.failed(error)
        else:
            self._database = opened.database
            self._all_known = True
            self._owner.opened(opened.content, opened.rebuilt, new=opened.new)

    def _gather(self) -> tuple[list[Change], bool]:
        """Wait for a change, or until something else is due; take all that have come. False: there will be no more."""
        changes: list[Change] = []
        patience = RETRY_SECONDS if self.problem else IDLE_SECONDS if self._unfolded else None
        try:
            item = self._queue.get(timeout=patience)
            until = time.monotonic() + LEISURE_SECONDS
            hurried = False
            while item is not None:
                changes.append(item)
                hurried = hurried or item.hurried
                left = 0.0 if hurried else until - time.monotonic()
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
        except queue.Empty:
            return changes, True
        return changes, False

    def _rest(self) -> None:
        """Between changes: try again what was refused, or fold the log into the database."""
        if self.problem:
            self._handle([])
        elif self._unfolded and self._database is not None:
            self._unfolded = False
            try:
                self._database.checkpoint()
            except sqlite3.Error as error:
                log.warning("the state database's log stays", database=str(self._path), reason=str(error))

    def _end(self) -> None:
        if self._kept:
            self._next_attempt = 0.0
            self._handle([])
        if self._kept:
            lost = [f"{kind.kind} {key}" for change in self._kept for kind, key in change.write.rows]
            log.error("changes that the disk refuses are lost", database=str(self._path), changes=lost)
        if self._database is not None:
            try:
                self._database.finish()
            except sqlite3.Error as error:
                log.warning("the state database was not closed in order", reason=str(error))
            self._let_go()

    def _handle(self, changes: Sequence[Change]) -> None:
        """Write what was kept, and then the changes; each has its error afterwards, or none."""
        work = [*self._kept, *changes]
        try:
            database = self._usable()
            try:
                self._commit(database, work)
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                self._commit(self._replaced(UnusableError(DAMAGED, str(error))), work)
        except Exception as error:
            if not isinstance(error, sqlite3.Error | OSError | RefusedError):
                log.exception("the writer of the state database has an error")
            for change in work:
                change.error = error
            self._refused(error)
            if is_refusal(error) and not is_full(error, self._path):
                self._let_go()  # so that the disk can be unmounted and mended
        self._kept = _to_keep(work)
        if self._kept and not self.problem:
            self._refused(self._kept[0].error)

    def _commit(self, database: Database, work: Sequence[Change]) -> None:
        """Commit changes together; if that fails each by itself, so that none suffers for another's fault.

        Raises sqlite3.Error for what is no fault of theirs.
        """

        def write() -> None:
            if work:
                database.write([change.write for change in work])
            else:
                database.touch()

        try:
            self._timed(lambda: with_room(write, self._path, self._make_room))
        except Exception as error:  # the writer must live; the error belongs to whoever asked for the change
            if _is_common(error) or (len(work) < 2 and is_refusal(error)):
                raise
            if len(work) == 1:
                work[0].error = error
                return
            self._commit_each(database, work, error)
            return
        for change in work:
            change.error = None
        self._unfolded = True
        self._written()

    def _timed(self, action: Callable[[], None]) -> None:
        began = time.perf_counter()
        try:
            action()
        finally:
            self._took(time.perf_counter() - began)

    def _commit_each(self, database: Database, work: Sequence[Change], error: Exception) -> None:
        refused: Exception | None = None
        for change in work:
            try:
                self._commit(database, [change])
            except sqlite3.Error as refusal:
                if _is_common(refusal):
                    raise
                change.error = refused = refusal
        if refused is not None:  # a small one may have had room where a large one had not
            self._refused(error)

    def _usable(self) -> Database:
        """The database, opened or made anew if need be. Raises RefusedError, sqlite3.Error, OSError."""
        if self._database is not None:
            lost = self._database.lost()
            return self._replaced(UnusableError("replaced", lost)) if lost else self._database
        if time.monotonic() < self._next_attempt:
            raise RefusedError(self._reason)
        self._next_attempt = time.monotonic() + RETRY_SECONDS / 2
        if self._unusable is not None:
            return self._replaced(self._unusable)
        return self._reopened()

    def _reopened(self) -> Database:
        """The database, which could not be opened at first, or was closed for the sake of its disk; made to hold what is true.

        That may be more than was kept: a disk that fails can lose what was written just before.
        """
        content = self._owner.content()
        if content is None:
            raise RefusedError(self._reason)
        opened = open_database(self._path, self._make_room)
        rows: dict[Key, dict[str, Any] | None] = {
            (type(record), record.key): row(record) for record in content.records()
        }
        others = [(type(record), record.key) for record in opened.content.records()]
        others = [key for key in others if key not in rows]
        if self._all_known:
            rows.update(dict.fromkeys(others))
        elif others:  # it could not be read, so nobody can say that they are gone
            log.error(
                "the state database can be read now, and has records that this daemon did not know of",
                records=[f"{kind.kind} {key}" for kind, key in others],
                remedy="restart the daemon to have them looked after",
            )
        try:
            with_room(lambda: opened.database.write([Write(rows)]), self._path, self._make_room)
        except BaseException:
            opened.database.close()
            raise
        self._database = opened.database
        return self._database

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except sqlite3.Error as error:
                log.warning("the state database was not closed in order", reason=str(error))

    def _replaced(self, unusable: UnusableError) -> Database:
        """A new database of what is in memory, in place of one that is damaged or gone."""
        self._unusable = unusable
        self._let_go()
        content = self._owner.content()
        if content is None:
            raise RefusedError(str(unusable))
        self._database = rebuild(self._path, unusable, content, self._make_room).database
        self._unusable = None
        return self._database

    def _refused(self, error: Exception | None) -> None:
        self._reason = str(error)
        if not self.problem:
            log.error(
                "the state database cannot be written; what happens is kept in memory and written later",
                database=str(self._path),
                reason=self._reason,
                remedy="make room on its disk, or make that writable; see what holds it locked",
            )
        self.problem = f"the state database {self._path} cannot be written: {self._reason}"

    def _written(self) -> None:
        if self.problem:
            log.info("the state database can be written again", database=str(self._path))
        self.problem = self._reason = ""


def _is_common(error: Exception) -> bool:
    """Whether all changes meet this error, large or small."""
    return is_damage(error) or is_locked(error) or (is_refusal(error) and not is_no_room(error))


def _to_keep(work: Sequence[Change]) -> list[Change]:
    """What has happened and is not written, without what newer changes have made void; in order."""
    kept: list[Change] = []
    overtaken: set[Key] = set()
    for change in reversed(work):
        rows = change.write.rows
        if change.error is None:
            overtaken.update(rows)
        elif change.followed:
            left = {key: values for key, values in rows.items() if key not in overtaken}
            overtaken.update(left)
            if left or change.write.raw:
                kept.append(Change(Write(left, change.write.raw), followed=True, error=change.error))
    kept.reverse()
    return kept
