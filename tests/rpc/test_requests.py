"""Requests are read whole or refused, whatever is in them; secrets are not shown."""

from __future__ import annotations

import functools

import pytest
import structlog
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cri.api.runtime import v1
from cri.errors import InvalidArgumentError
from cri.metrics import Metrics
from cri.rpc import descriptors, fields
from cri.rpc import messages as codec
from cri.rpc.calls import Call
from cri.rpc.table import RUNTIME_SERVICE, TABLE


@pytest.fixture(autouse=True)
def _log_context():
    """`_request` binds ids to the log's context, which is the test's own here."""
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True, scope="module")
def _read_only():
    """What may be asked for is for `test_fields`; here it is about what is read of the bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "check", lambda *_: None)
        yield


RPCS = [rpc for rpcs in TABLE.values() for rpc in rpcs]

_TYPES = {
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=5),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 3),
}


@functools.cache
def messages(name: str, depth: int = 4):
    """Values of a message as protobuf's own class."""
    strict = descriptors.strict_class(name)

    def value(field):
        if field.message_type is None:
            return _TYPES[field.type]
        if field.message_type.GetOptions().map_entry:
            of = field.message_type.fields_by_name
            return st.dictionaries(value(of["key"]), value(of["value"]), max_size=2)
        return messages(field.message_type.full_name, depth - 1)

    fields = {}
    for field in strict.DESCRIPTOR.fields:
        if field.message_type is not None and depth == 0:
            continue
        one = value(field)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        # Before protobuf 6.31, only the label says it; after, asking for the label warns.
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        fields[field.name] = one if is_map or not repeated else st.lists(one, max_size=2)

    def build(values):
        return strict(**values)

    return (
        st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=4).flatmap(
            lambda names: st.fixed_dictionaries({name: fields[name] for name in names}).map(build)
        )
        if fields
        else st.just(strict())
    )


def call_for(rpc) -> Call:
    async def method(request):
        raise AssertionError

    return Call(RUNTIME_SERVICE, rpc, method, Metrics())


CALLS = {rpc.name: call_for(rpc) for rpc in RPCS}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.data())
def test_no_cut_is_read_by_half(data) -> None:
    """A cut in the middle of a field is refused; one between fields is another whole message, and read as such."""
    rpc = data.draw(st.sampled_from(RPCS))
    name = descriptors.full_name(rpc.request)
    encoded = data.draw(messages(name)).SerializeToString()
    assume(encoded)
    strict = descriptors.strict_class(name)
    for end in range(len(encoded) + 1):
        piece = encoded[:end]
        try:
            whole = strict.FromString(piece)
        except DecodeError:
            with pytest.raises(InvalidArgumentError, match=rpc.name):
                CALLS[rpc.name]._request(piece)
        else:
            assert strict.FromString(bytes(CALLS[rpc.name]._request(piece))) == whole
    assert strict.FromString(bytes(CALLS[rpc.name]._request(encoded))).SerializeToString(
        deterministic=True
    ) == (strict.FromString(encoded).SerializeToString(deterministic=True))


@given(st.binary(max_size=40))
def test_noise_is_refused_or_read_like_protobuf_does(noise: bytes) -> None:
    rpc = next(rpc for rpc in RPCS if rpc.name == "RunPodSandbox")
    try:
        request = CALLS[rpc.name]._request(noise)
    except InvalidArgumentError:
        return
    strict = descriptors.strict_class("runtime.v1.RunPodSandboxRequest")
    expected = strict.FromString(noise)
    expected.DiscardUnknownFields()
    assert strict.FromString(bytes(request)) == expected


def test_a_known_field_of_another_wire_type_is_passed_over() -> None:
    """As protobuf has it; betterproto2 alone raises KeyError here."""
    container_id = b"\x0a\x01c"
    fixed32_as_timeout, varint_as_id = b"\x15\x00\x00\x00\x00", b"\x08\x07"
    request = CALLS["StopContainer"]._request(container_id + fixed32_as_timeout + varint_as_id)
    assert request == v1.StopContainerRequest(container_id="c")


def test_submessages_in_pieces_are_merged() -> None:
    pieces = (v1.ImageSpec(image="a"), v1.ImageSpec(user_specified_image="b"))
    data = b"".join(bytes(v1.PullImageRequest(image=piece)) for piece in pieces)
    assert CALLS["PullImage"]._request(data).image == v1.ImageSpec(image="a", user_specified_image="b")


def test_secrets_are_redacted() -> None:
    request = v1.PullImageRequest(
        image=v1.ImageSpec(image="docker.io/x"),
        auth=v1.AuthConfig(
            username="me",
            password="s1",
            auth="s2",
            identity_token="s3",
            registry_token="s4",
            server_address="a",
        ),
    )
    shown = descriptors.redacted(request)
    assert shown["image"] == {"image": "docker.io/x"}
    assert shown["auth"] == {
        "username": "me",
        "server_address": "a",
        **dict.fromkeys(("password", "auth", "identity_token", "registry_token"), descriptors.REDACTED),
    }


def test_everything_else_is_shown() -> None:
    config = v1.ContainerConfig(
        command=["a", ""],
        envs=[v1.KeyValue(key="TOKEN", value=b"s5")],
        labels={"app": "web"},
        mounts=[v1.Mount(container_path="/x", propagation=v1.MountPropagation.PROPAGATION_BIDIRECTIONAL)],
        stop_signal=v1.Signal.SIGQUIT,
    )
    assert descriptors.redacted(v1.CreateContainerRequest(config=config)) == {
        "config": {
            "command": ["a", ""],
            "envs": [{"key": "TOKEN", "value": descriptors.REDACTED}],
            "labels": {"app": "web"},
            "mounts": [{"container_path": "/x", "propagation": "PROPAGATION_BIDIRECTIONAL"}],
            "stop_signal": "SIGNAL_SIGQUIT",
        }
    }


def test_a_map_in_another_order_is_the_same_request() -> None:
    """Go sends maps in any order; a retry of the kubelet must be known for what it is."""
    strict = descriptors.strict_class("runtime.v1.PodSandboxConfig")
    labels = {f"label{number}": str(number) for number in range(12)}
    there, back = strict(labels=labels), strict(labels=dict(reversed(labels.items())))
    parsed = [codec.parsed(v1.PodSandboxConfig, one.SerializeToString()) for one in (there, back)]
    assert codec.encoded(parsed[0]) == codec.encoded(parsed[1])
