"""Specs as JSON, and the small files they live in. Imports little beyond the standard library: the warden uses it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cri.sandbox import small_files
from cri.sandbox.spec import ExitRecord, Resources

T = TypeVar("T")

EXIT_RECORD = "exit.json"

_PLAIN = frozenset({str, int, bool, type(None)})
_ITEMS = 100
_CHARACTERS = 16 * 1024
"""What is encoded in one piece: a fraction of a millisecond."""


class WireError(ValueError):
    """JSON that is none, or does not say what it should: damaged, or of a newer release. Names the place in it."""


def encode(value: Any) -> Any:
    """A spec as what `json.dumps` takes. Text with surrogate escapes survives, as JSON escapes it.

    A field that is None where that is the default is left out: a warden of an older release may not know it.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if dataclasses.is_dataclass(kind):
        return {
            name: item if type(item) in _PLAIN else encode(item)
            for name, always in _names(kind)
            if (item := getattr(value, name)) is not None or always
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def dumps(value: Any) -> str:
    """A spec as JSON, made in pieces: the encoder of the standard library lets nobody else run until it is through.

    With ten thousand mounts that would be a twentieth of a second.
    """
    return "".join(_pieces(value))


def text_pieces(text: str) -> Iterator[str]:
    """A text as a JSON string, in pieces, for the same reason."""
    yield '"'
    for first in range(0, len(text), _CHARACTERS):
        yield json.dumps(text[first : first + _CHARACTERS])[1:-1]
    yield '"'


def _pieces(value: Any) -> Iterator[str]:
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        given = ((name, getattr(value, name), always) for name, always in _names(kind))
        shown = ((name, item) for name, item, always in given if item is not None or always)
        yield from _joined("{", ((f'"{name}": ', item) for name, item in shown), "}")
    elif isinstance(value, Mapping) and len(value) > _ITEMS:
        yield from _chunks("{", iter(value.items()), dict, "}")
    elif isinstance(value, tuple | list) and len(value) > _ITEMS:
        yield from _chunks("[", iter(value), list, "]")
    else:
        yield json.dumps(encode(value))


def _joined(begin: str, items: Iterable[tuple[str, Any]], end: str) -> Iterator[str]:
    yield begin
    for place, (before, item) in enumerate(items):
        yield f", {before}" if place else before
        yield from _pieces(item)
    yield end


def _chunks(
    begin: str, items: Iterator[Any], kind: Callable[[Iterable[Any]], Any], end: str
) -> Iterator[str]:
    yield begin
    between = ""
    while chunk := kind(itertools.islice(items, _ITEMS)):
        yield between + json.dumps(encode(chunk))[1:-1]
        between = ", "
    yield end


@functools.cache
def _names(kind: type) -> tuple[tuple[str, bool], ...]:
    """The fields of a spec, and of each whether it is there when it is None."""
    return tuple((field.name, field.default is not None) for field in dataclasses.fields(kind))


def decode(kind: type[T], data: Any) -> T:
    """The spec that `encode` was given. Fields that the data lacks take their defaults.

    Raises WireError for a field that is unknown, missing without a default, or of a wrong type.
    """
    try:
        return typing.cast("T", _decoder(typing.cast("Any", kind))(data))
    except _Misfit as misfit:
        raise WireError(f"{kind.__name__}{misfit.place}: {misfit}") from None


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


class _Misfit(Exception):  # noqa: N818 - it never gets out of this module
    """A value is not what its place asks for. The place is put together on the way out: nearly always there is none."""

    place = ""


_Decoder = Callable[[Any], Any]


@functools.cache
def _decoder(kind: Any) -> _Decoder:
    """What makes a value of a kind out of what JSON has for it. It raises _Misfit.

    A daemon decodes a thousand specs at its start, so what a kind is made of is looked up once.
    """
    if isinstance(kind, type) and kind in (str, int, bool):
        return functools.partial(_plain, kind)
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return functools.partial(_optional, _decoder(kind))
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return functools.partial(_tuple, item, _decoder(item))
    if origin is dict:
        return functools.partial(_dict, _decoder(typing.get_args(kind)[1]))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return functools.partial(_enum, kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {name: _decoder(hint) for name, hint in hints.items() if not name.startswith("_")}
        return functools.partial(_spec, kind, fields)
    raise AssertionError(f"no codec for {kind}")


def _plain(kind: Any, data: Any) -> Any:
    if type(data) is not kind:
        raise _Misfit(f"{_named(data)} instead of {kind.__name__}")
    if kind is int and not -(1 << 63) <= data < 1 << 64:
        raise _Misfit("an integer of more than 64 bits")
    return data


def _optional(decode_: _Decoder, data: Any) -> Any:
    return None if data is None else decode_(data)


def _tuple(item: Any, decode_: _Decoder, data: Any) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _Misfit(f"{_named(data)} instead of list")
    if item is str and all(type(one) is str for one in data):
        return tuple(data)
    return tuple(map(decode_, data))


def _dict(decode_: _Decoder, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _Misfit(f"{_named(data)} instead of dict")
    return _values(data, lambda _: decode_)


def _enum(kind: type[enum.Enum], data: Any) -> Any:
    try:
        return kind(data)
    except ValueError:
        raise _Misfit(f"{data!r} is no {kind.__name__}") from None


def _spec(kind: type, fields: Mapping[str, _Decoder], data: Any) -> Any:
    if not isinstance(data, dict):
        raise _Misfit(f"{_named(data)} instead of dict")
    if unknown := data.keys() - fields.keys():
        raise _Misfit(f"{', '.join(sorted(unknown))} unknown to this release")
    values = _values(data, fields.__getitem__)
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise _Misfit(str(error)) from None


def _values(data: Mapping[str, Any], decoder_of: Callable[[str], _Decoder]) -> dict[str, Any]:
    name = ""
    values = {}
    try:
        for name, value in data.items():
            values[name] = decoder_of(name)(value)
    except _Misfit as misfit:
        misfit.place = f".{name}{misfit.place}"
        raise
    return values


def _named(data: Any) -> str:
    return "null" if data is None else type(data).__name__
