"""From whatever lies at the database's path to a database that can be used.

What cannot be used is put aside under a name that says why and when, for people to look at; what can be read of it goes
into a new one. That is made whole beside the old one before anything is moved, so whatever happens meanwhile, one of the
two is there at the next start.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from cri.state import wal
from cri.state.database import IN_USE, Database, is_full, is_locked, is_refusal, with_room
from cri.state.errors import StateError
from cri.state.rows import Content
from cri.state.salvage import read_bytes, salvage_file

log = structlog.get_logger(__name__)

_COMPANIONS = ("-wal", "-shm", "-journal")
_HEADER = 100
DAMAGED = "damaged"


class RefusedError(Exception):
    """The disk takes nothing now; all is as it was, and another attempt may go well.

    `finding` says what is wrong with the database besides, "" if nothing is.
    """

    def __init__(self, reason: str, finding: str = "") -> None:
        super().__init__(reason)
        self.finding = finding


class UnusableError(Exception):
    """The file cannot be used as it is. `why` is a word for the name that it gets, the message says more."""

    def __init__(self, why: str, reason: str) -> None:
        super().__init__(reason)
        self.why = why
        self.content: Content | None = None
        """What could be read of it, if somebody has looked."""


@dataclass(slots=True)
class Opened:
    """A database that can be written, and what it held when it was opened."""

    database: Database
    content: Content
    rebuilt: str = ""
    """Why it may lack what an earlier daemon has written; "" if it does not."""
    new: bool = False
    """There was nothing at all."""


def open_database(path: Path, make_room: Callable[[], bool]) -> Opened:
    """Open, mend, replace or make the database. Raises RefusedError, and nothing else for what the disk holds or does.

    `make_room` frees space, and says whether it could, when the disk turns out to be full.
    """
    finding = ""
    try:
        finding = lost = _clear_companions(path) or _missing_log(path)
        try:
            opened = _open(path, make_room)
        except UnusableError as unusable:
            finding = str(unusable)
            return rebuild(path, unusable, unusable.content or salvage_file(path), make_room)
    except (sqlite3.Error, OSError) as error:
        raise RefusedError(_words(error), finding) from error
    if lost and not opened.new:
        opened.rebuilt = opened.rebuilt or lost
        log.warning(
            "the state database may lack its last changes",
            database=str(path),
            reason=opened.rebuilt,
            records=len(opened.content),
            remedy="none is needed: records are compared with the pods that run",
        )
    return opened


def rebuild(path: Path, unusable: UnusableError, content: Content, make_room: Callable[[], bool]) -> Opened:
    """Make a new database of this content, put what is there aside, and open the new one.

    Raises RefusedError, sqlite3.Error, OSError.
    """
    successor = _successor(path)

    def make() -> None:
        _remove(successor)
        refused.extend(_fill(successor, content))

    refused: list[object] = []
    with_room(make, path, make_room)
    aside = _put_aside(path, unusable.why)
    successor.rename(path)
    _sync(path.parent)
    database = Database.connect(path)
    try:
        with_room(lambda: _begin(database), path, make_room)
    except BaseException:
        database.close()
        raise
    log.error(
        "the state database could not be used; a new one holds what could be read",
        database=str(path),
        reason=str(unusable),
        put_aside=str(aside) if aside else None,
        records=len(content),
        unreadable=len(content.unreadable),
        only_there=[str(one) for one in refused],
        lost=content.losses,
        remedy="none is needed: records that are missing are made anew of what runs; remove the old file once it is of no use",
    )
    return Opened(database, content, rebuilt=str(unusable))


def _open(path: Path, make_room: Callable[[], bool]) -> Opened:
    """Open what is there, if it can be used. Raises UnusableError, RefusedError, sqlite3.Error, OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return _open_missing(path, make_room)
    if not stat.S_ISREG(found.st_mode):
        raise UnusableError(DAMAGED, f"it is {_type(found.st_mode)}, not a file")
    if not found.st_size:
        if wal.Log.read(read_bytes(Path(f"{path}-wal"))) is not None:
            raise UnusableError(DAMAGED, "it is empty, and only its log has anything")
        return _tried(path, make_room, new="it was empty")
    return _tried(path, make_room)


def _open_missing(path: Path, make_room: Callable[[], bool]) -> Opened:
    successor = _successor(path)
    if successor.is_file() and not successor.is_symlink():  # an earlier daemon died between two renames
        successor.rename(path)
        opened = _tried(path, make_room)
        opened.rebuilt = "an earlier daemon has just rebuilt it"
        return opened
    if wal.Log.read(read_bytes(Path(f"{path}-wal"))) is not None:
        raise UnusableError(DAMAGED, "it is gone, and only its log is there")
    return _tried(path, make_room, new="there was none")


def _tried(path: Path, make_room: Callable[[], bool], *, new: str = "") -> Opened:
    """Open a file and look whether it is usable, twice if room had to be made."""
    try:
        return _try(path, new=new)
    except (sqlite3.Error, OSError) as error:
        if not is_full(error, path) or not make_room():
            raise
    return _try(path, new=new)


def _try(path: Path, *, new: str) -> Opened:
    expected = wal.expected_frames(read_bytes(Path(f"{path}-wal")), read_bytes(Path(f"{path}-shm")))
    database = Database.connect(path)
    frames: int | None = None
    try:
        _fit(database)
        content = database.content()
        frames = database.begin()
    except (sqlite3.Error, StateError, UnusableError) as error:
        unusable = error if isinstance(error, UnusableError) else _unusable(error, path)
        if unusable is None:
            raise
        # Before the connection is closed: that folds the log into a file that may be damaged, and removes it.
        unusable.content = salvage_file(path)
        raise unusable from error
    finally:
        if frames is None:
            database.close()
    rebuilt = new
    if not new and frames < expected:
        rebuilt = f"its log is damaged: of {expected} pages that were written {max(frames, 0)} are whole"
        log.error("changes of the state database are lost", database=str(path), reason=rebuilt)
    if new:
        log.info("a new state database", database=str(path), reason=new)
    return Opened(database, content, rebuilt=rebuilt, new=bool(new))


def _fit(database: Database) -> None:
    """Bring what is whole to what records need. Raises UnusableError, StateError, sqlite3.Error."""
    if finding := database.finding():
        raise UnusableError(DAMAGED, finding)
    database.use_log()
    if not database.is_newer:
        database.migrate()
    if misfit := database.misfit():
        if database.is_newer:
            raise UnusableError(f"newer-{database.version}", f"it is of a newer release, and {misfit}")
        raise UnusableError(DAMAGED, misfit)
    if database.is_newer:
        # Releases only add to the schema (see CHANGELOG.md), so what is not known here is kept, and not touched.
        log.warning(
            "the state database is of a newer release; what that has added is left alone",
            database=str(database.path),
            schema=database.version,
        )


def _unusable(error: sqlite3.Error | StateError, path: Path) -> UnusableError | None:
    """What an error says about the file; None if it is the disk that refuses."""
    cause = error.__cause__ if isinstance(error, StateError) else error
    if not isinstance(cause, sqlite3.Error):
        return UnusableError(DAMAGED, str(error))
    if is_locked(cause):
        return UnusableError("locked", f"another process holds it locked ({cause})")
    if is_refusal(cause):
        # A full or read-only disk says nothing about the file. With another one it may be this file that fails.
        elsewhere = is_full(cause, path) or not _writable(path.parent)
        return None if elsewhere else UnusableError("unreadable", str(cause))
    return UnusableError(DAMAGED, str(error))


def _writable(directory: Path) -> bool:
    probe = directory / f".probe-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        probe.unlink()
    except OSError:
        return False
    return True


def _begin(database: Database) -> None:
    database.use_log()
    database.begin()


def _fill(path: Path, content: Content) -> list[object]:
    """Make a database that is whole on disk, without a log."""
    database = Database.connect(path)
    try:
        database.migrate()
        refused = database.fill(content)
    except StateError as error:
        raise error.__cause__ or error from error
    finally:
        database.close()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return list(refused)


def _successor(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _remove(successor: Path) -> None:
    for suffix in ("", *_COMPANIONS):
        file = Path(f"{successor}{suffix}")
        try:
            file.unlink(missing_ok=True)
        except OSError:  # a directory, say
            file.rename(_free_name(file, DAMAGED))


def _put_aside(path: Path, why: str) -> Path | None:
    """Rename a database and what belongs to it; the new name, if there was anything."""
    aside = _free_name(path, why)
    moved = None
    for suffix in ("", *_COMPANIONS):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
            moved = moved or Path(f"{aside}{suffix}")
    return moved


def _free_name(path: Path, why: str) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    wanted = path.with_name(f"{path.name}.{why}-{stamp}")
    number = 1
    name = wanted
    while any(os.path.lexists(f"{name}{suffix}") for suffix in ("", *_COMPANIONS)):
        number += 1
        name = wanted.with_name(f"{wanted.name}-{number}")
    return name


def _clear_companions(path: Path) -> str:
    """Put aside what lies where SQLite keeps files of its own and is no file; why the log is lost, or ""."""
    lost = ""
    for suffix in _COMPANIONS:
        file = Path(f"{path}{suffix}")
        try:
            mode = file.lstat().st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            aside = Path(f"{_free_name(path, DAMAGED)}{suffix}")
            file.rename(aside)
            reason = f"{file.name} was {_type(mode)}, not a file"
            log.error("put aside what lay in the state database's way", put_aside=str(aside), reason=reason)
            lost = lost or (reason if suffix == "-wal" else "")
    return lost


def _missing_log(path: Path) -> str:
    """Why the log is lost of a database that an earlier daemon has not closed, or ""."""
    header = b""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                header = os.pread(descriptor, _HEADER, 0)
        finally:
            os.close(descriptor)
    if wal.application_id(header) != IN_USE:
        return ""
    name = f"{path.name}-wal"
    log_content = read_bytes(Path(f"{path}-wal"))
    if not log_content:
        # Or another program has folded it into the file and removed it, while no daemon was there to see.
        return f"{name}, its log, is gone"
    if wal.Log.read(log_content) is None:
        return f"{name}, its log, is damaged"
    return ""


def _type(mode: int) -> str:
    names = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in names if test(mode)), "a device")


def _words(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
