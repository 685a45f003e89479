"""Rows: records as SQLite holds them, and the rows that are none."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import JSON

from cri.state.records import RECORDS, Record, columns, sound, table

Row = Mapping[str, Any]
Key = tuple[type[Record], str]
Tables = dict[type[Record], dict[str, Record]]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that this release cannot understand: it stays in the database as it is."""

    kind: type[Record]
    key: str
    """The primary key, which may be no name of a file; how Python writes it where it is no text."""
    values: dict[str, Any]
    """What its columns hold, as far as there are any; text that is not UTF-8 as bytes."""
    reason: str

    def __str__(self) -> str:
        """Name it in a message."""
        return f"{self.kind.kind} {self.key}: {self.reason}"


@dataclass(slots=True)
class Content:
    """All that a database holds, or what could be read of it."""

    tables: Tables = field(default_factory=lambda: {kind: {} for kind in RECORDS})
    unreadable: dict[Key, Unreadable] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    """What could not be read, in words."""

    def add(self, kind: type[Record], values: dict[str, Any]) -> None:
        """Take a row."""
        try:
            record = _understood(kind, values)
        except ValueError as error:
            key = _key(values.get("id"))
            self.unreadable[kind, key] = Unreadable(kind, key, values, str(error))
        else:
            self.tables[kind][record.key] = record

    def records(self) -> Iterable[Record]:
        """Every record, containers after the sandboxes that they are in."""
        return (record for kind in RECORDS for record in self.tables[kind].values())

    def __len__(self) -> int:
        """Return the number of records."""
        return sum(map(len, self.tables.values()))


def row(record: Record) -> dict[str, Any]:
    """The record's values as SQLite takes them. Raises TypeError, ValueError."""
    values = record.values()
    for name in json_columns(type(record)):
        values[name] = None if values[name] is None else json.dumps(values[name])
    return values


def text(raw: bytes) -> str | bytes:
    """What a connection makes of a text (`text_factory`): one that is not UTF-8 must not cost the rows behind it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


@functools.cache
def json_columns(kind: type[Record]) -> tuple[str, ...]:
    """The columns that hold JSON."""
    return tuple(column.name for column in table(kind).columns if isinstance(column.type, JSON))


def _understood(kind: type[Record], values: Row) -> Record:
    """The record that a row stands for. Raises ValueError, which says what is wrong with it."""
    found = {}
    for name, (kinds, expected) in columns(kind).items():
        if name not in values:
            raise ValueError(f"there is no column {name}")
        value = values[name]
        if bool in kinds and value in (0, 1):
            value = bool(value)
        elif name in json_columns(kind) and value is not None:
            value = _parsed(name, value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{name} is {type(value).__name__}, not {expected}")
        if isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is a list of other things than text")
        found[name] = sound(value)
    record = kind.made(found)
    if not _is_name(record.key):
        raise ValueError("its id is no name of an object")
    return record


def _parsed(name: str, value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not JSON")  # noqa: TRY004 - a value, as the database has it
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def _is_name(value: str) -> bool:
    """Whether it can be an id. Objects have directories that are called after it."""
    return value.isprintable() and "/" not in value and value not in ("", ".", "..")


def _key(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
