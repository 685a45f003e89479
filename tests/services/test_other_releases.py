"""Clients of older and of newer releases of the CRI are served: what they do not know, or we do not, is passed over."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

from cri.rpc import descriptors
from cri.rpc.table import IMAGE_SERVICE, RUNTIME_SERVICE

TAG = "docker.io/library/app:1"
SINCE_1_30 = {
    "Mount": ("image", "image_sub_path", "mount_options"),
    "LinuxSandboxSecurityContext": ("supplemental_groups_policy",),
    "LinuxContainerSecurityContext": ("supplemental_groups_policy",),
    "ContainerStatus": ("user", "stop_signal"),
    "StatusResponse": ("features",),
    "ContainerConfig": ("stop_signal",),
    "ImageSpec": ("image_ref",),
    "CpuUsage": ("psi",),
    "MemoryUsage": ("psi",),
    "ContainerStats": ("io",),
    "LinuxPodSandboxStats": ("io",),
}
"""Fields that came after v0.30 (by a diff of the proto files)."""


def _files() -> descriptor_pb2.FileDescriptorSet:
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add()
    descriptors.pool().FindFileByName(
        descriptors.pool().FindMessageTypeByName("runtime.v1.Mount").file.name
    ).CopyToProto(file)
    return files


def _messages(files: descriptor_pb2.FileDescriptorSet):
    pool = DescriptorPool()
    for file in files.file:
        del file.service[:]
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"runtime.v1.{name}"))


def _older():
    """The messages of v0.30, as far as they are used here: an environment's values are text."""
    files = _files()
    for message in files.file[0].message_type:
        kept = [field for field in message.field if field.name not in SINCE_1_30.get(message.name, ())]
        assert len(message.field) - len(kept) == len(SINCE_1_30.get(message.name, ()))
        if message.name == "KeyValue":
            kept[1].type = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
        fields = [descriptor_pb2.FieldDescriptorProto.FromString(one.SerializeToString()) for one in kept]
        del message.field[:]
        message.field.extend(fields)
    return _messages(files)


def _newer():
    """The messages of a release to come: each has a text and a number more."""
    files = _files()
    for message in files.file[0].message_type:
        if not message.options.map_entry:
            message.field.add(name="to_come", number=1000, type=9, label=1)
            message.field.add(name="also", number=1001, type=5, label=3)
    return _messages(files)


@pytest.fixture(params=[_older, _newer], ids=["1.30", "to come"])
def release(request):
    return request.param()


@pytest.fixture
def call(grpc_channel, release):
    def call(name: str, **fields):
        service = IMAGE_SERVICE if "Image" in name else RUNTIME_SERVICE
        return grpc_channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=release(f"{name}Response").FromString,
        )(_filled(release(f"{name}Request")(**fields)), timeout=20)

    return call


def _filled(message):
    """The message, with all that a newer release would say in it."""
    if "to_come" in message.DESCRIPTOR.fields_by_name:
        message.to_come = "x"
        message.also.extend([1, 2])
    for field, value in message.ListFields():
        if field.message_type is not None and not descriptors.is_map(field):
            for one in value if descriptors.is_repeated(field) else (value,):
                _filled(one)
    return message


def test_the_life_of_a_pod(call, release, node) -> None:
    """What crictl does: info, pull, runp, create, start, ps, inspect, stats, update, exec, stop, rm, stopp, rmp."""
    assert call("Version").runtime_api_version == "v1"
    assert [one.type for one in call("Status", verbose=True).status.conditions] == [
        "RuntimeReady",
        "NetworkReady",
    ]
    call("PullImage", image={"image": TAG})
    assert call("ImageStatus", image={"image": TAG}, verbose=True).image.repo_tags == [TAG]
    config = {
        "metadata": {"name": "old", "uid": "u", "namespace": "n"},
        "log_directory": f"{node.directory}/logs",
    }
    pod = call("RunPodSandbox", config=config).pod_sandbox_id
    value = "text" if release("KeyValue").DESCRIPTOR.fields_by_name["value"].type == 9 else b"text"
    container = call(
        "CreateContainer",
        pod_sandbox_id=pod,
        config={
            "metadata": {"name": "c"},
            "image": {"image": TAG},
            "envs": [{"key": "A", "value": value}],
            "mounts": [{"container_path": "/m", "host_path": f"{node.directory}/volume"}],
            "log_path": "c.log",
            "linux": {
                "resources": {"cpu_shares": 2},
                "security_context": {"seccomp_profile_path": "unconfined"},
            },
        },
        sandbox_config=config,
    ).container_id
    assert node.pods.containers[container].spec.process.env[-1] == "A=text"
    call("StartContainer", container_id=container)
    call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 4})
    assert [one.id for one in call("ListContainers", filter={"pod_sandbox_id": pod}).containers] == [
        container
    ]
    assert [one.id for one in call("ListPodSandbox").items] == [pod]
    assert call("ContainerStatus", container_id=container, verbose=True).status.metadata.name == "c"
    assert call("PodSandboxStatus", pod_sandbox_id=pod, verbose=True).status.metadata.uid == "u"
    assert call("ContainerStats", container_id=container).stats.attributes.id == container
    assert len(call("ListContainerStats").stats) == 1
    call("ExecSync", container_id=container, cmd=["true"], timeout=5)
    assert call("ImageFsInfo").image_filesystems
    call("StopContainer", container_id=container, timeout=0)
    call("RemoveContainer", container_id=container)
    call("StopPodSandbox", pod_sandbox_id=pod)
    call("RemovePodSandbox", pod_sandbox_id=pod)
    assert not node.pods.sandboxes
