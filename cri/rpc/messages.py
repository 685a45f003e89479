"""From protobuf's messages to betterproto2's and back: what is parsed or encoded passes protobuf's own code (upb).

betterproto2 checks nothing: it reads what is cut off, and writes integers of any length and text that is no UTF-8, which
no client can read. It is also slow: its parser takes 0.7 ms for a kubelet's CreateContainer, where protobuf's and the way
from there take a tenth of that. So its classes are what services and life cycles are given to look at and to make
answers of, and its codec is not used.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast

import betterproto2
from google.protobuf.message import DecodeError, Message

from cri.api.message_pool import default_message_pool
from cri.rpc import descriptors

M = TypeVar("M", bound=betterproto2.Message)

LONG = 500
"""Entries of a list or map that are made in one go."""

_Convert = Callable[[Any], Any]


class UnencodableError(ValueError):
    """A message has a value that its field cannot have; names the message and, where it is known, why."""


def adopted(kind: type[M], strict: Message) -> M:
    """A message of protobuf's own class as betterproto2's. Fields that this release does not know are left behind."""
    plan = _reading(kind)
    made = kind()
    for field, value in strict.ListFields():
        name, convert = plan[field.number]
        # Not by __init__, which warns of fields that are deprecated: a client's, and not our doing.
        setattr(made, name, value if convert is None else convert(value))
    return made


def strict(message: betterproto2.Message) -> Message:
    """A message of betterproto2 as protobuf's own. Raises UnencodableError."""
    kind = descriptors.strict_class(descriptors.full_name(type(message)))
    try:
        return _made(kind, _given(message))
    except (ValueError, TypeError, OverflowError) as error:  # text that is no UTF-8 is a ValueError
        raise UnencodableError(f"{type(message).__name__}: {error}") from error


def encoded(message: betterproto2.Message) -> bytes:
    """The encoding of a message, the same for equal ones. Raises UnencodableError."""
    data: bytes = strict(message).SerializeToString(deterministic=True)
    return data


def parsed(kind: type[M], data: bytes) -> M:
    """The message in `data`. Raises ValueError for bytes that are none."""
    try:
        return adopted(kind, descriptors.strict_class(descriptors.full_name(kind)).FromString(data))
    except DecodeError as error:
        raise ValueError(f"no {kind.__name__}: {error}") from error


def _made(kind: type[Message], given: dict[str, Any]) -> Message:
    """A message of the arguments of its class; long lists and maps in pieces, as nobody else can run while it is made."""
    long = {name: value for name, value in given.items() if _is_long(value)}
    made = kind(**{name: value for name, value in given.items() if name not in long})
    for name, value in long.items():
        there = getattr(made, name)
        field = kind.DESCRIPTOR.fields_by_name[name]
        if isinstance(value, list):
            for first in range(0, len(value), LONG):
                made.MergeFrom(kind(**{name: value[first : first + LONG]}))
        elif descriptors.is_map(field):
            entries = iter(value.items())
            while some := dict(itertools.islice(entries, LONG)):
                made.MergeFrom(kind(**{name: some}))
        else:
            there.CopyFrom(_made(type(there), value))
    return made


def _is_long(value: Any) -> bool:
    """Whether there are many entries in a list, in a map, or in a message that is one or has one."""
    if isinstance(value, list):
        return len(value) > LONG
    return isinstance(value, dict) and (len(value) > LONG or any(map(_is_long, value.values())))


def _given(message: betterproto2.Message) -> dict[str, Any]:
    """What a message says, as the arguments that protobuf's class takes."""
    found = {}
    for attribute, name, always, convert in _writing(type(message)):
        value = getattr(message, attribute)
        if value is None or (not always and not value):
            continue
        found[name] = value if convert is None else convert(value)
    return found


@functools.cache
def _reading(kind: type[betterproto2.Message]) -> dict[int, tuple[str, _Convert | None]]:
    """By number of a field: the attribute that has it, and how the value becomes betterproto2's."""
    about: betterproto2.ProtoClassMetadata = cast("Any", kind)._betterproto  # noqa: SLF001 - told nowhere else
    classes = about.cls_by_field
    plan: dict[int, tuple[str, _Convert | None]] = {}
    for field in fields(cast("Any", kind)):
        meta = betterproto2.FieldMetadata.get(field)
        if meta.map_meta is not None:
            one = _converter(meta.map_meta[1].proto_type, classes[f"{field.name}.value"])
            convert: _Convert | None = dict if one is None else functools.partial(_each_value, one)
        else:
            one = _converter(meta.proto_type, classes[field.name])
            convert = one
            if meta.repeated:
                convert = list if one is None else functools.partial(_each, one)
        plan[meta.number] = field.name, convert
    return plan


@functools.cache
def _writing(kind: type[betterproto2.Message]) -> list[tuple[str, str, bool, _Convert | None]]:
    """Of each field: its attribute, its name in the proto, whether it counts when it is zero, and how it is written."""
    descriptor = descriptors.strict_class(descriptors.full_name(kind)).DESCRIPTOR
    plan = []
    for field in fields(cast("Any", kind)):
        meta = betterproto2.FieldMetadata.get(field)
        of = meta.map_meta[1] if meta.map_meta is not None else meta
        convert: _Convert | None = None
        if of.proto_type == betterproto2.TYPE_MESSAGE:
            convert = _given
        elif of.proto_type == betterproto2.TYPE_ENUM:
            convert = int
        if meta.map_meta is not None:
            convert = dict if convert is None else functools.partial(_each_value, convert)
        elif meta.repeated and convert is not None:
            convert = functools.partial(_each, convert)
        # A message that says nothing is one that is there, and so is an optional value of zero.
        always = not meta.repeated and (
            of.proto_type == betterproto2.TYPE_MESSAGE or bool(meta.optional) or meta.group is not None
        )
        plan.append((field.name, descriptor.fields_by_number[meta.number].name, always, convert))
    return plan


def _converter(proto_type: str, kind: type) -> _Convert | None:
    if proto_type == betterproto2.TYPE_MESSAGE:
        return functools.partial(adopted, kind)
    return kind if proto_type == betterproto2.TYPE_ENUM else None


def _each(convert: _Convert, values: Any) -> list[Any]:
    return [convert(value) for value in values]


def _each_value(convert: _Convert, values: Any) -> dict[Any, Any]:
    return {key: convert(value) for key, value in values.items()}


def _default(self: Any, field_name: str) -> Any:
    return self._betterproto.default_gen[field_name]()


def _prepare() -> None:
    """Give the generated classes a `_get_field_default` that sets up no filter of warnings for each field it is asked for.

    `bool`, `repr` and `bytes` ask for every field: the filters are two thirds of their time. No default of the CRI warns,
    as none of them is a message. `docs/betterproto2-defaults.patch` is what upstream could do.
    """
    for kind in default_message_pool.type_to_url:
        kind._get_field_default = _default  # type: ignore[method-assign]  # noqa: SLF001


_prepare()
