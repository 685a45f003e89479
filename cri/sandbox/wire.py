"""Specs as JSON, and the small files they live in. Imports little beyond the standard library: the warden uses it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cri.sandbox import small_files
from cri.sandbox.spec import ExitRecord, Resources

T = TypeVar("T")

EXIT_RECORD = "exit.json"


class WireError(ValueError):
    """JSON that is none, or does not say what it should: damaged, or of a newer release. Names the place in it."""


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
    """The spec that `encode` was given. Fields that the data lacks take their defaults.

    Raises WireError for a field that is unknown, missing without a default, or of a wrong type.
    """
    return typing.cast("T", _decode(kind, data, kind.__name__))


def loads(kind: type[T], text: str | bytes) -> T:
    """The spec in a JSON text. Raises WireError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from None
    return decode(kind, data)


def replace(value: T, **changes: Any) -> T:
    """A copy of a spec with some fields changed."""
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def merged(old: Resources, new: Resources) -> Resources:
    """Limits after an update: what the update names is new, the rest stays."""
    given = {field.name: getattr(new, field.name) for field in dataclasses.fields(new)}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, dict):
            given[name] = getattr(old, name) | value
    return dataclasses.replace(old, **given)


def read_exit_record(directory: Path) -> ExitRecord | None:
    """The exit record in a container's directory, or None if there is none. Blocks. Raises OSError, WireError."""
    try:
        text = small_files.read(directory / EXIT_RECORD)
    except FileNotFoundError:
        return None
    return loads(ExitRecord, text)


def write_exit_record(directory: Path, record: ExitRecord) -> None:
    """Write the exit record so that a crash leaves either the whole of it or nothing. Blocks. Raises OSError."""
    small_files.write(directory / EXIT_RECORD, json.dumps(encode(record)).encode("ascii"), sync=True)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if not name.startswith("_")}


def _decode(kind: Any, data: Any, where: str) -> Any:
    if isinstance(kind, type) and kind in (str, int, bool):
        if type(data) is not kind:
            raise WireError(f"{where}: {_named(data)} instead of {kind.__name__}")
        return data
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return _decode(kind, data, where)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, element, where) for element in _checked(list, data, where))
    if origin is dict:
        item = typing.get_args(kind)[1]
        entries = _checked(dict, data, where).items()
        return {key: _decode(item, element, f"{where}.{key}") for key, element in entries}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError:
            raise WireError(f"{where}: {data!r} is no {kind.__name__}") from None
    if dataclasses.is_dataclass(kind):
        return _decode_fields(typing.cast("type", kind), _checked(dict, data, where), where)
    raise AssertionError(f"{where}: no codec for {kind}")


def _decode_fields(kind: type, data: Mapping[str, Any], where: str) -> Any:
    hints = _hints(kind)
    if unknown := data.keys() - hints.keys():
        raise WireError(f"{where}: {', '.join(sorted(unknown))} unknown to this release")
    try:
        return kind(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()})
    except TypeError as error:  # a field without a default is missing
        raise WireError(f"{where}: {error}") from None


def _checked(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, kind):
        raise WireError(f"{where}: {_named(data)} instead of {kind.__name__}")
    return data


def _named(data: Any) -> str:
    return "null" if data is None else type(data).__name__
