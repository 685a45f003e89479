"""What can be read of a ledger's file that cannot be used, and where the file goes.

Nothing here changes a file but by giving it another name: what is damaged is evidence.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

log = logging.getLogger("cni_plugins")

Row: TypeAlias = tuple[Any, ...]

SCHEMA_VERSION = 1
_MOST_BYTES = 256 << 20  # of a file that is copied to be read; a ledger has a few MiB
_ATTACHMENTS = """
SELECT network, owner, container, boot, configuration, attachment, result, leaving
FROM attachments ORDER BY network {0}, owner {0}
"""
_QUERIES = (
    _ATTACHMENTS,
    "SELECT pool, value, owner, boot FROM claims ORDER BY number {0}",
    "SELECT name, value FROM notes ORDER BY name {0}",
)
_KEYS = (3, 3, 2)  # how many columns of a row must be text for it to be of any use


class UnusableError(Exception):
    """The file is there and is no ledger that can be worked with."""


class Contents(NamedTuple):
    """The rows of a ledger, claims in the order in which they were made."""

    attachments: list[Row]
    claims: list[Row]
    notes: list[Row]


def decode(text: bytes) -> str:
    """Return a text of the database; one that is damaged must not keep others from being read."""
    return text.decode(errors="surrogateescape")


def refuse_other_types(paths: Sequence[Path]) -> None:
    """Raise UnusableError if one of the files is there and no regular file; nobody but us makes any here."""
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise UnusableError(f"{path.name} is {_kind(mode)}, not a regular file")


def checked(database: sqlite3.Connection) -> Contents:
    """Return all rows of a database that is sound. Raises UnusableError, sqlite3.Error."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        which = "a later" if version > SCHEMA_VERSION else "no"
        raise UnusableError(f"it is of {which} release (schema {version})")
    ((verdict,),) = database.execute("PRAGMA integrity_check(1)").fetchall()
    if verdict != "ok":
        raise UnusableError(f"it is damaged ({verdict})")
    rows = [[*map(_storable, database.execute(query.format("ASC")))] for query in _QUERIES]
    for found, keys in zip(rows, _KEYS, strict=True):
        if any(not _is_sound(row, keys) for row in found):
            raise UnusableError("a row has no name that can be read")
    return Contents(*rows)


def salvage(path: Path) -> Contents:
    """Return those rows of a damaged, locked or newer ledger that can be read. Never raises."""
    with contextlib.ExitStack() as cleanup:
        try:
            return _read(cleanup, _copy(cleanup, path))
        except (OSError, sqlite3.Error) as error:
            log.warning("nothing can be read of ledger %s: %s", path, error)
            return Contents([], [], [])


def put_aside(path: Path, parts: Sequence[str]) -> Path | None:
    """Give a file, with what belongs to it, a name that tells what has become of it; None if there was nothing.

    Raises OSError.
    """
    stem = f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    aside, number = path.with_name(stem), 1
    while any(_is_there(aside.with_name(aside.name + part)) for part in parts):
        number += 1
        aside = path.with_name(f"{stem}-{number}")
    moved = False
    for part in parts:  # the database first: what is left of the rest without it is known to be a rest
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + part).rename(aside.with_name(aside.name + part))
            moved = True
    return aside if moved else None


def remove(path: Path) -> None:
    """Remove whatever is called so. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(cleanup: contextlib.ExitStack, path: Path) -> str:
    """Return the URI of a copy that nobody holds a lock on and nothing can happen to.

    Where there is no room for one it is the file itself, as of its last checkpoint.
    """
    if not path.is_file():  # behind a link, perhaps
        raise FileNotFoundError(f"{path} is no file")
    try:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ledger-")))
        copied = directory / "copy"
        _copy_file(path, copied)
        log_of_changes = path.with_name(f"{path.name}-wal")
        if log_of_changes.is_file():
            _copy_file(log_of_changes, directory / "copy-wal")
    except OSError as error:
        log.warning("ledger %s cannot be copied to be read: %s", path, error)
        return f"{path.absolute().as_uri()}?immutable=1"
    return copied.as_uri()


def _copy_file(source: Path, target: Path) -> None:
    if source.stat().st_size > _MOST_BYTES:
        raise OSError(f"{source} has more than {_MOST_BYTES} bytes")
    shutil.copyfile(source, target)


def _read(cleanup: contextlib.ExitStack, uri: str) -> Contents:
    database = cleanup.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True)))
    database.text_factory = decode
    rows = []
    for query, keys in zip(_QUERIES, _KEYS, strict=True):
        # From both ends: what is damaged lies between.
        found = _rows(database, query.format("ASC"))
        seen = {row[: keys - 1] for row in found}
        behind = [row for row in _rows(database, query.format("DESC")) if row[: keys - 1] not in seen]
        rows.append([row for row in (*found, *reversed(behind)) if _is_sound(row, keys)])
    return Contents(*rows)


def _rows(database: sqlite3.Connection, query: str) -> list[Row]:
    found: list[Row] = []
    with contextlib.suppress(sqlite3.Error):  # what came before it is what there is to be had
        for row in database.execute(query):
            found.append(_storable(row))  # noqa: PERF401 - as far as it goes
    return found


def _is_sound(row: Row, keys: int) -> bool:
    return all(isinstance(one, str) for one in row[:keys])


def _storable(row: Row) -> Row:
    """Return a row whose damaged texts are bytes: as such they can be stored again, and are taken for no text."""
    return tuple(map(_text_or_bytes, row))


def _text_or_bytes(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(errors="surrogateescape")
    return value


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFLNK: "a symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "a socket or device")
