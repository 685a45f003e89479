"""Random requests, sound and not: none is an internal error, and none leaves a trace once what it made is removed."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.rpc import descriptors
from cri.rpc.table import TABLE, UNIMPLEMENTED

IMAGE_ID = "sha256:" + "a" * 64
TAG = "docker.io/library/app:1"
NUMBERS = (
    -(1 << 63),
    -(1 << 31),
    -1,
    0,
    1,
    2,
    999,
    65536,
    (1 << 31) - 1,
    (1 << 32) - 1,
    (1 << 32) + 7,
    (1 << 63) - 1,
)
RANGES = {
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
}
TEXTS = (
    "", "a", " ", "\0", "a\nb", "é\U0001f40b", "\ufffe\u2028", "x" * 300, "y" * 5000, "/", "//", "..", "/..", "/../..", "a/../../b",
    "localhost/x", "0", "-1", "9" * 30, "a=b", "%s%n", "2MB", "1GB", "0-3,7", "0,", "CHOWN", "CAP_ALL", "SIGTERM", "memory.high",
    "pids.max", "net.core.somaxconn", "192.0.2.1", "fe80::1%eth0", "224.0.0.1", "runtime/default", "linux", "10k", "-5",
    "kubernetes.io/egress-bandwidth", "cdi.k8s.io/x", "noexec", "rwm", "rw", TAG, IMAGE_ID, "/proc/sys", "/dev", "/dev/null", "100.64.0.0/24",
)  # fmt: skip
ON_DISK = frozenset({"host_path", "log_directory"})
"""Fields whose paths are made on the machine that the test runs on."""
CODES = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED})


RPCS = {
    rpc.name: (service, rpc)
    for service, rpcs in TABLE.items()
    for rpc in rpcs
    if rpc.name not in UNIMPLEMENTED
}


class Client:
    """Calls any RPC with protobuf's own messages, and reads answers as strictly as Go does."""

    def __init__(self, channel) -> None:
        self.channel = channel

    def __call__(self, name: str, request=None, **fields):
        service, rpc = RPCS[name]
        if request is None:
            request = new(f"{name}Request", **fields)
        make = self.channel.unary_stream if rpc.stream else self.channel.unary_unary
        answer = descriptors.strict_class(descriptors.full_name(rpc.response)).FromString
        call = make(
            f"/{service}/{name}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answer,
        )(request, timeout=20)
        return list(call) if rpc.stream else call

    def survive(self, name: str, request):
        """The answer, or None for one that is refused in a way that tells the caller of his own doing."""
        refused = None
        try:
            return self(name, request)
        except grpc.RpcError as error:
            refused = error
        told = f"{name} of {request}: {refused.code()}: {refused.details()}"
        # What a container was told to run may not be there: containerd answers so as well.
        started = name in ("StartContainer", "ExecSync") and "internal error" not in told
        assert started or refused.code() not in CODES, told
        assert refused.details(), told
        return None


@pytest.fixture
def client(grpc_channel) -> Client:
    return Client(grpc_channel)


def new(name: str, **fields):
    return descriptors.strict_class(f"runtime.v1.{name}")(**fields)


def value(draw, field: FieldDescriptor, directory: Path):
    if field.name in ON_DISK:
        return draw(
            st.sampled_from(["", "here", f"{directory}/of it", f"{directory}/../\0", "/" + "z" * 300])
        )
    if field.enum_type is not None:
        return draw(st.sampled_from([*field.enum_type.values_by_number, -1, 99, (1 << 31) - 1]))
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw(st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=4))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw(st.booleans())
    low, high = RANGES[field.type]
    return max(low, min(high, draw(st.sampled_from(NUMBERS))))


def change(draw, message, directory: Path) -> None:
    """Change one field of a message or of what is in it."""
    if not message.DESCRIPTOR.fields:
        return
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    there = getattr(message, field.name)
    if descriptors.is_map(field):
        of = field.message_type.fields_by_name
        there[value(draw, of["key"], directory)] = value(draw, of["value"], directory)
    elif descriptors.is_repeated(field) and field.message_type is not None:
        change(draw, there.add(), directory)
    elif descriptors.is_repeated(field):
        there.append(value(draw, field, directory))
    elif field.message_type is not None:
        there.SetInParent()
        change(draw, there, directory)
    else:
        setattr(message, field.name, value(draw, field, directory))


def changed(data, directory: Path, message, most: int = 4):
    for _ in range(data.draw(st.integers(0, most))):
        change(data.draw, message, directory)
    return message


def pod_config(directory: Path):
    return new(
        "PodSandboxConfig",
        metadata={"name": "p", "uid": "u", "namespace": "n"},
        hostname="p",
        log_directory=f"{directory}/logs",
        labels={"app": "x"},
        linux={"security_context": {"namespace_options": {"pid": 1}}},
    )


def container_config(directory: Path):
    return new(
        "ContainerConfig",
        metadata={"name": "c"},
        image={"image": TAG},
        log_path="c.log",
        envs=[{"key": "A", "value": b"b"}],
        mounts=[{"container_path": "/m", "host_path": f"{directory}/volume"}],
        linux={
            "resources": {"cpu_shares": 2, "oom_score_adj": -997, "hugepage_limits": [{"page_size": "2MB"}]},
            "security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": 0}},
        },
    )


def lists(client: Client) -> None:
    """Whatever is there can be listed and looked at."""
    for item in client("ListPodSandbox").items:
        client("PodSandboxStatus", pod_sandbox_id=item.id, verbose=True)
    for item in client("ListContainers").containers:
        client("ContainerStatus", container_id=item.id, verbose=True)
    client("ListContainerStats")
    client("ListImages")


def no_trace(client: Client, node) -> None:
    """Remove all, and see that nothing is left in memory, in the kernel, in the store or on the disk."""
    for item in client("ListPodSandbox").items:
        client("StopPodSandbox", pod_sandbox_id=item.id)
        client("RemovePodSandbox", pod_sandbox_id=item.id)
    assert (node.pods.sandboxes, node.pods.containers) == ({}, {})
    assert (dict(node.store.sandboxes), dict(node.store.containers)) == ({}, {})
    assert node.kernel.clean()
    assert node.network.attached == {}
    left = [path for kind in ("sandboxes", "containers", "run") for path in (node.directory / kind).glob("*")]
    assert left == []
    end = time.monotonic() + 10
    while any((node.directory / "removed").glob("*")) and time.monotonic() < end:
        time.sleep(0.01)


SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(st.data())
def test_pods_and_containers(client, node, data) -> None:
    request = new("RunPodSandboxRequest", config=pod_config(node.directory))
    made = client.survive("RunPodSandbox", changed(data, node.directory, request))
    if made is None:
        assert not node.pods.sandboxes
        assert not node.store.sandboxes
    lists(client)
    no_trace(client, node)


@SETTINGS
@given(st.data())
def test_containers_of_a_sound_pod(client, node, data) -> None:
    # All is drawn before anything is done, so that what is drawn never depends on what has come of it.
    request = changed(
        data, node.directory, new("CreateContainerRequest", config=container_config(node.directory))
    )
    limits = changed(data, node.directory, new("UpdateContainerResourcesRequest", linux={"cpu_shares": 2}), 3)
    pod = client("RunPodSandbox", config=pod_config(node.directory)).pod_sandbox_id
    request.pod_sandbox_id = request.pod_sandbox_id or pod
    try:
        made = client.survive("CreateContainer", request)
        assert bool(made) == bool(node.pods.containers) == bool(node.store.containers)
        if made is not None:
            client.survive("StartContainer", new("StartContainerRequest", container_id=made.container_id))
            limits.container_id = limits.container_id or made.container_id
            client.survive("UpdateContainerResources", limits)
        lists(client)
    finally:
        no_trace(client, node)


CHANGES_NOTHING_HERE = sorted(
    RPCS.keys()
    - {
        "RunPodSandbox",
        "CreateContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
        "RemoveContainer",
        "UpdateRuntimeConfig",
        "GetContainerEvents",  # it does not end
    }
)


@pytest.fixture(scope="module")
def running(grpc_servicer, grpc_channel, node):
    client = Client(grpc_channel)
    pod = client("RunPodSandbox", config=pod_config(node.directory)).pod_sandbox_id
    container = client(
        "CreateContainer", pod_sandbox_id=pod, config=container_config(node.directory)
    ).container_id
    client("StartContainer", container_id=container)
    yield {"pod_sandbox_id": pod, "container_id": container}
    no_trace(client, node)


@settings(SETTINGS, max_examples=200)
@given(st.data())
def test_every_other_request(client, node, running, data) -> None:
    name = data.draw(st.sampled_from(CHANGES_NOTHING_HERE))
    request = descriptors.strict_class(descriptors.full_name(RPCS[name][1].request))()
    for field, of in running.items():
        if field in request.DESCRIPTOR.fields_by_name and data.draw(st.booleans()):
            setattr(request, field, of)
    client.survive(name, changed(data, node.directory, request))
