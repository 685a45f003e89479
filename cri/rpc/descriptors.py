"""The committed descriptor set of the CRI, and what protobuf's own parser makes of it.

betterproto2 reads what it can and keeps quiet about the rest: a message cut off in the middle of a field comes out
short. So every request is parsed by protobuf's C implementation (upb), and `cri.rpc.messages` makes betterproto2's out of
that. Its classes are made here from `cri/api/proto/api.desc`, in a descriptor pool of our own: another library in the process
may have its own runtime.v1.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import betterproto2
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from cri.api.message_pool import default_message_pool
from cri.errors import InvalidArgumentError

SECRET_FIELDS = frozenset({"runtime.v1.KeyValue.value"})
"""Secret beside what the proto marks `debug_redact`: environment variables are where pods keep passwords."""

REDACTED = "[redacted]"

PIECE = 32 * 1024
"""Bytes of a message that are read in one go: half a millisecond."""

_VARINT, _DELIMITED = 0, 2
_LONGEST_VARINT = 10
_FIXED = {1: 8, 5: 4}
"""Wire types (protobuf, Encoding), and the bytes of those of fixed size."""


def new_pool() -> DescriptorPool:
    """A pool with the descriptors of runtime.v1, and nothing else."""
    files = descriptor_pb2.FileDescriptorSet.FromString(
        resources.files("cri.api").joinpath("proto/api.desc").read_bytes()
    )
    descriptors = DescriptorPool()
    for file in files.file:
        descriptors.Add(file)
    return descriptors


pool = functools.cache(new_pool)


def service(name: str) -> ServiceDescriptor:
    """The descriptor of a service such as `runtime.v1.RuntimeService`. Raises KeyError."""
    return pool().FindServiceByName(name)


@functools.cache
def strict_class(full_name: str) -> type[Message]:
    """Protobuf's own class of a message such as `runtime.v1.VersionRequest`. Raises KeyError."""
    made: type[Message] = message_factory.GetMessageClass(pool().FindMessageTypeByName(full_name))
    return made


def full_name(kind: type[betterproto2.Message]) -> str:
    """The name in the proto of a betterproto2 class. Raises KeyError for a class that is not of the CRI."""
    return default_message_pool.type_to_url[kind].rpartition("/")[2]


def check(strict: type[Message], data: bytes, rpc: str) -> Message:
    """Parse bytes strictly. Raises InvalidArgumentError if they are cut off, malformed, or hold text that is not UTF-8."""
    message = strict()
    try:
        merge(message, data)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"{rpc}: the request is no valid {strict.DESCRIPTOR.full_name} ({len(data)} bytes): "
            "it is cut off, malformed, or has text that is not UTF-8"
        ) from error
    return message


def merge(message: Message, data: bytes, piece: int = PIECE) -> None:
    """Read bytes into a message, long ones in pieces, as nobody else can run while protobuf reads. Raises DecodeError.

    Protobuf concatenates: the fields of a message may come in any number of pieces, and a message in a message as well.
    """
    first = at = 0
    while len(data) - first > piece and at < len(data):
        begin = at
        tag, at = _varint(data, at)
        kind = tag & 7
        size = 0
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _DELIMITED:
            size, at = _varint(data, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            break  # a group, or none: let protobuf say
        inside, at = at, at + size
        if at > len(data):
            break  # cut off
        if at - first <= piece:
            continue
        field = message.DESCRIPTOR.fields_by_number.get(tag >> 3)
        long = kind == _DELIMITED and size > piece
        if long and field is not None and field.message_type is not None and not is_repeated(field):
            message.MergeFromString(data[first:begin])
            inner = getattr(message, field.name)
            inner.SetInParent()
            merge(inner, data[inside:at], piece)
        else:
            message.MergeFromString(data[first:at])
        first = at
    message.MergeFromString(data[first:])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length and where it ends: behind the data if it has no end, which protobuf refuses."""
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(data) + 1


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field is a list or a map."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)  # before protobuf 6.31


def redacted(message: Message | betterproto2.Message) -> dict[str, Any]:
    """The fields that are set, by name, for a debug log; secret ones say only that they are set."""
    if isinstance(message, betterproto2.Message):
        message = strict_class(full_name(type(message))).FromString(bytes(message))
    return {field.name: _shown(field, value) for field, value in message.ListFields()}


@functools.cache
def _secret(field: FieldDescriptor) -> bool:
    return field.full_name in SECRET_FIELDS or bool(field.GetOptions().debug_redact)


def _shown(field: FieldDescriptor, value: Any) -> Any:
    if _secret(field):
        return REDACTED
    if isinstance(value, Message):
        return redacted(value)
    if isinstance(value, str | bytes | bool | float):
        return value
    if isinstance(value, int):
        known = field.enum_type and field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if is_map(field):
        of = field.message_type.fields_by_name["value"]
        return {key: _shown(of, value[key]) for key in value}
    return [_shown(field, one) for one in value]
