"""Specs as JSON, and the small files they live in. Imports little beyond the standard library: the warden uses it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cri.sandbox.spec import ExitRecord, Resources

T = TypeVar("T")

EXIT_RECORD = "exit.json"


def encode(value: Any) -> Any:
    """A spec as what `json.dumps` takes. Text with surrogate escapes survives, as JSON escapes it.

    A field that is None where that is the default is left out: a warden of an older release may not know it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: encode(item) for field, item in given if item is not None or field.default is not None
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(kind: type[T], data: Any) -> T:
    """The spec that `encode` was given. Fields that the data lacks take their defaults; others raise TypeError."""
    return typing.cast("T", _decode(kind, data))


def replace(value: T, **changes: Any) -> T:
    """A copy of a spec with some fields changed."""
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def merged(old: Resources, new: Resources) -> Resources:
    """Limits after an update: what the update names is new, the rest stays."""
    given = {field.name: getattr(new, field.name) for field in dataclasses.fields(new)}
    return dataclasses.replace(
        old, **{name: value for name, value in given.items() if value not in (None, {})}
    )


def read_exit_record(directory: Path) -> ExitRecord | None:
    """The exit record in a container's directory, or None if there is none. Blocks."""
    try:
        text = (directory / EXIT_RECORD).read_text()
    except FileNotFoundError:
        return None
    return decode(ExitRecord, json.loads(text))


def write_exit_record(directory: Path, record: ExitRecord) -> None:
    """Write the exit record so that a crash leaves either the whole of it or nothing. Blocks."""
    temporary = directory / f".{EXIT_RECORD}.new"
    with temporary.open("w") as file:
        json.dump(encode(record), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / EXIT_RECORD)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if not name.startswith("_")}


def _decode(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return _decode(kind, data)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, element) for element in data)
    if origin is dict:
        item = typing.get_args(kind)[1]
        return {key: _decode(item, element) for key, element in data.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast("type", kind))
        return typing.cast("Any", kind)(**{name: _decode(hints[name], value) for name, value in data.items()})
    return data
