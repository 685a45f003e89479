"""Betterproto2's messages come out of protobuf's own code as its own codec would have made them, and go back as sound ones."""

from __future__ import annotations

import betterproto2
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.api.message_pool import default_message_pool
from cri.api.runtime import v1
from cri.rpc import descriptors, messages
from cri.rpc.answers import encoded

KINDS = sorted(default_message_pool.type_to_url, key=lambda kind: kind.__name__)

_VALUES = {
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=5),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
}


def _value(draw, field: FieldDescriptor, depth: int):
    if field.message_type is not None:
        return _message(draw, field.message_type, depth - 1)
    if field.enum_type is not None:
        return draw(st.sampled_from([*field.enum_type.values_by_number, 99]))
    return draw(_VALUES[field.type])


def _message(draw, descriptor, depth: int):
    made = descriptors.strict_class(descriptor.full_name)()
    for field in descriptor.fields:
        if (field.message_type is not None and depth == 0) or not draw(st.booleans()):
            continue
        if descriptors.is_map(field):
            of = field.message_type.fields_by_name
            for _ in range(draw(st.integers(0, 2))):
                getattr(made, field.name)[_value(draw, of["key"], 1)] = _value(draw, of["value"], 1)
        elif descriptors.is_repeated(field):
            getattr(made, field.name).extend(
                _value(draw, field, depth) for _ in range(draw(st.integers(0, 2)))
            )
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(_value(draw, field, depth))
        else:
            setattr(made, field.name, _value(draw, field, depth))
    return made


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_there_and_back_is_what_the_library_reads_and_writes(data) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    strict = _message(data.draw, descriptors.strict_class(descriptors.full_name(kind)).DESCRIPTOR, 3)
    wire = strict.SerializeToString(deterministic=True)
    here = messages.adopted(kind, strict)
    stock = kind.parse(wire)
    assert here == stock
    assert bool(here) == bool(stock)
    assert messages.encoded(here) == wire
    assert type(strict).FromString(bytes(here)) == strict


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_defaults_are_those_of_the_library(kind) -> None:
    made = kind()
    for name in kind._betterproto.sorted_field_names:
        found, stock = made._get_field_default(name), betterproto2.Message._get_field_default(made, name)
        assert (type(found), found) == (type(stock), stock)
        if isinstance(found, list | dict):
            assert found is not made._get_field_default(name)


def test_fields_of_a_newer_release_are_left_behind() -> None:
    newer = bytes(v1.VersionRequest(version="v9")) + b"\xca\x3e\x03abc"
    assert messages.parsed(v1.VersionRequest, newer) == v1.VersionRequest(version="v9")


@pytest.mark.parametrize(
    "broken",
    [
        v1.ContainerStatus(message="a\udcff"),
        v1.ContainerStatus(labels={"a": "\ud800"}),
        v1.Image(repo_tags=["\udcff"]),
        v1.Image(size=1 << 64),
        v1.Image(uid=v1.Int64Value(value=1 << 63)),
        v1.ContainerStatus(exit_code=1 << 31),
        v1.ContainerStatus(exit_code="1"),
        v1.ContainerStatus(message=None, reason=7),
    ],
    ids=repr,
)
def test_what_no_client_could_read_is_not_encoded(broken) -> None:
    with pytest.raises(messages.UnencodableError, match=type(broken).__name__):
        encoded(broken)


def test_bytes_that_are_no_message_are_told() -> None:
    with pytest.raises(ValueError, match="no Container"):
        messages.parsed(v1.Container, b"\x0a\x05ab")


def test_what_is_long_is_made_in_pieces_and_is_the_same() -> None:
    many = range(3 * messages.LONG + 1)
    config = v1.ContainerConfig(
        args=[str(number) for number in many],
        mounts=[v1.Mount(container_path=f"/{number}", readonly=bool(number % 2)) for number in many],
        labels={str(number): "x" for number in many},
        linux=v1.LinuxContainerConfig(
            security_context=v1.LinuxContainerSecurityContext(supplemental_groups=list(many)),
            resources=v1.LinuxContainerResources(),
        ),
    )
    for message in (config, v1.CreateContainerRequest(config=config)):
        strict = messages.strict(message)
        assert strict == type(strict).FromString(bytes(message))
        assert messages.parsed(type(message), messages.encoded(message)) == message


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.integers(1, 40))
def test_pieces_are_read_as_the_whole_is(data, piece) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    strict = descriptors.strict_class(descriptors.full_name(kind))
    wire = _message(data.draw, strict.DESCRIPTOR, 3).SerializeToString()
    # In any order, with something that nobody knows, cut off or mixed up somewhere.
    wire = data.draw(
        st.sampled_from(
            [wire, wire + b"\xca\x3e\x03abc" + wire, wire[: len(wire) // 2], wire[1:], wire + b"\x0b"]
        )
    )
    whole, pieces = strict(), strict()
    try:
        whole.MergeFromString(wire)
    except DecodeError:
        with pytest.raises(DecodeError):
            descriptors.merge(pieces, wire, piece)
    else:
        descriptors.merge(pieces, wire, piece)
        assert pieces == whole
        assert pieces.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


@given(st.binary(max_size=60), st.integers(1, 8))
def test_noise_in_pieces_is_read_as_the_whole_is(noise, piece) -> None:
    strict = descriptors.strict_class("runtime.v1.CreateContainerRequest")
    whole, pieces = strict(), strict()
    try:
        whole.MergeFromString(noise)
    except DecodeError:
        with pytest.raises(DecodeError):
            descriptors.merge(pieces, noise, piece)
    else:
        descriptors.merge(pieces, noise, piece)
        assert pieces == whole
