"""Requests are held to the table: a field that is refused must not be set, and a value must be as its rule says.

Beside that, in every request: no string holds a NUL byte (a kernel's strings end there), and enumerations have values that
this release knows. Fields that it does not know are another matter: they are passed over, as protobuf has it, so that a
client of a newer release can talk to this one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from cri.errors import CRIError, InvalidArgumentError, UnsupportedError
from cri.rpc.descriptors import is_map, is_repeated
from cri.rpc.fields import rules
from cri.rpc.fields.rules import Rule
from cri.rpc.fields.table import ROOTS, TABLE, Fate


@dataclass(frozen=True, slots=True)
class _Checked:
    """A field that must be looked at."""

    name: str
    refusal: str = ""
    """Why it must not be set."""
    rule: Rule | None = None
    keys: Rule | None = None
    known: frozenset[int] | None = None
    """The values of an enumeration."""
    enum: str = ""
    inner: Mapping[int, _Checked] | None = None
    """Of a message: its fields that must be looked at."""
    is_map: bool = False
    is_repeated: bool = False


def check(request: Message, system: str) -> None:
    """Hold a request to the table, as it is for "linux" or "freebsd".

    Raises UnsupportedError for what this node cannot do, InvalidArgumentError for what cannot be, naming the field.
    """
    _walk(_plan(request.DESCRIPTOR, system), request, "")


def says_something(message: Message) -> bool:
    """Whether any field of a message has a value, however deep."""
    for field, value in message.ListFields():
        if field.message_type is None or is_map(field):
            return True
        if any(map(says_something, value if is_repeated(field) else (value,))):
            return True
    return False


def root_of(field: FieldDescriptor) -> str:
    """The message with rows of its own that a field holds, if it does."""
    name = field.message_type.name if field.message_type is not None else ""
    return name if name in ROOTS else ""


def _walk(plan: Mapping[int, _Checked], message: Message, where: str) -> None:
    for field, value in message.ListFields():
        checked = plan.get(field.number)
        if checked is not None:
            _look(checked, value, f"{where}{checked.name}")


def _look(checked: _Checked, value: Any, where: str) -> None:
    if checked.refusal:
        if not isinstance(value, Message) or says_something(value):
            raise UnsupportedError(f"{where}: {checked.refusal}")
    elif checked.is_map:
        for key, item in value.items():
            _hold(checked.keys, key, f"{where}: key")
            _hold(checked.rule, item, f"{where}[{key!r:.80}]")
    elif checked.is_repeated and checked.rule is not None and all(map(checked.rule.holds, value)):
        return
    elif checked.is_repeated:
        for place, item in enumerate(value):
            _one(checked, item, where, place)
    else:
        _one(checked, value, where, -1)


def _one(checked: _Checked, value: Any, where: str, place: int) -> None:
    if checked.inner is not None:
        _walk(checked.inner, value, f"{where}." if place < 0 else f"{where}[{place}].")
    elif checked.known is not None:
        if value not in checked.known:
            raise InvalidArgumentError(
                f"{_at(where, place)} is {value}: this release knows no such {checked.enum}"
            )
    elif checked.rule is not None and not checked.rule.holds(value):
        raise _broken(checked.rule, value, _at(where, place))


def _hold(rule: Rule | None, value: Any, where: str) -> None:
    if rule is not None and not rule.holds(value):
        raise _broken(rule, value, where)


def _at(where: str, place: int) -> str:
    return where if place < 0 else f"{where}[{place}]"


def _broken(rule: Rule, value: Any, where: str) -> CRIError:
    kind = UnsupportedError if rule in rules.UNSUPPORTED else InvalidArgumentError
    return kind(f"{where}{'' if rule.secret else f' is {value!r:.80}'}: must be {rule.says}")


@functools.cache
def _plan(kind: Descriptor, system: str) -> Mapping[int, _Checked]:
    return _fields(kind, kind.name if kind.name in ROOTS else "", system, ())


def _fields(kind: Descriptor, path: str, system: str, above: Iterable[str]) -> Mapping[int, _Checked]:
    """The fields of a message that must be looked at. `path` is "" where the table has no rows for it."""
    above = (*above, kind.full_name)
    made = ((field.number, _field(field, path, system, above)) for field in kind.fields)
    return {number: checked for number, checked in made if checked is not None}


def _field(field: FieldDescriptor, path: str, system: str, above: Iterable[str]) -> _Checked | None:
    row = TABLE[f"{path}.{field.name}"] if path else None
    fate = row.on(system) if row is not None else None
    if fate is not None and fate.fate is Fate.REFUSED:
        return _Checked(field.name, refusal=fate.text)
    if fate is not None and fate.fate is Fate.IGNORED:
        return None
    rule = row.rule if row is not None else None
    if is_map(field):
        keys = row.keys if row is not None else None
        if rule in (None, rules.ANY) and keys in (None, rules.ANY):
            return None
        return _Checked(field.name, rule=rule, keys=keys, is_map=True)
    if field.message_type is not None:
        if field.message_type.full_name in above:
            raise AssertionError(f"{field.full_name}: a message that holds itself; walk it with care")
        inner_path = root_of(field) or (f"{path}.{field.name}" if path else "")
        inner = _fields(field.message_type, inner_path, system, above)
        return _Checked(field.name, inner=inner, is_repeated=is_repeated(field)) if inner else None
    if field.enum_type is not None:
        known = frozenset(field.enum_type.values_by_number)
        return _Checked(field.name, known=known, enum=field.enum_type.name, is_repeated=is_repeated(field))
    if rule is None and field.type == FieldDescriptor.TYPE_STRING:
        rule = rules.TEXT
    if rule is None or rule is rules.ANY:
        return None
    return _Checked(field.name, rule=rule, is_repeated=is_repeated(field))
