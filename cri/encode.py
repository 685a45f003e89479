"""What the node knows, as CRI messages, encoded.

Protobuf concatenates: the encoding of a list message is the concatenation of its items, each with its tag and length.
So an item is encoded once per change of its object, and a List answer is a join of bytes; likewise long text and output
are pieces beside their headers, and never copied into a message.

Messages are put together by protobuf's C implementation out of the configs as they were sent: betterproto2 takes thirty
times as long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from cri.api.runtime import v1
from cri.rpc import descriptors
from cri.sandbox import stop_signals
from cri.sandbox.container import Container
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import DiskUsage, Resources, Usage
from cri.state import ImageRecord

_SANDBOX_STATE = {
    SandboxState.READY: v1.PodSandboxState.SANDBOX_READY,
    SandboxState.NOTREADY: v1.PodSandboxState.SANDBOX_NOTREADY,
    SandboxState.REMOVING: v1.PodSandboxState.SANDBOX_NOTREADY,
}
_CONTAINER_STATE = {
    ContainerState.CREATED: v1.ContainerState.CONTAINER_CREATED,
    ContainerState.STARTING: v1.ContainerState.CONTAINER_CREATED,
    ContainerState.RUNNING: v1.ContainerState.CONTAINER_RUNNING,
    ContainerState.EXITED: v1.ContainerState.CONTAINER_EXITED,
    ContainerState.UNKNOWN: v1.ContainerState.CONTAINER_UNKNOWN,
    ContainerState.REMOVING: v1.ContainerState.CONTAINER_EXITED,
}


def header(field: int, size: int) -> bytes:
    """What stands before the `size` bytes of a string, bytes or message field."""
    found, tag = bytearray(), field << 3 | 2
    for number in (tag, size):
        rest = number
        while rest > 0x7F:
            found.append(rest & 0x7F | 0x80)
            rest >>= 7
        found.append(rest)
    return bytes(found)


def list_item(message: Message) -> bytes:
    """A message as an element of the repeated field 1 that every List response consists of."""
    body: bytes = message.SerializeToString()
    return header(1, len(body)) + body


def sandbox_item(sandbox: PodSandbox) -> bytes:
    """The sandbox as an element of ListPodSandboxResponse.items."""
    record = sandbox.record
    item = _new(
        "PodSandbox",
        id=record.id,
        state=_SANDBOX_STATE[SandboxState(record.state)],
        created_at=record.created_at,
        runtime_handler=record.runtime_handler,
    )
    _copy(_config(sandbox), item, "metadata", "labels", "annotations")
    return list_item(item)


def container_item(container: Container) -> bytes:
    """The container as an element of ListContainersResponse.containers."""
    record = container.record
    item = _new(
        "Container",
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        image_ref=record.image_ref,
        state=_CONTAINER_STATE[ContainerState(record.state)],
        created_at=record.created_at,
        image_id=record.image_id,
    )
    _copy(_config(container), item, "metadata", "image", "labels", "annotations")
    return list_item(item)


def image_item(image: ImageRecord) -> bytes:
    """The image as an element of ListImagesResponse.images; also the image of an ImageStatusResponse."""
    user = image.user.partition(":")[0]
    item = _new(
        "Image",
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.size,
        username="" if user.isdecimal() else user,
        pinned=image.pinned,
    )
    if user.isdecimal():
        item.uid.value = int(user)
    return list_item(item)


def sandbox_state(sandbox: PodSandbox) -> v1.PodSandboxState:
    """The state as clients are shown it."""
    return _SANDBOX_STATE[sandbox.state]


def container_state(container: Container) -> v1.ContainerState:
    """The state as clients are shown it."""
    return _CONTAINER_STATE[container.state]


def sandbox_status(sandbox: PodSandbox, *, verbose: bool) -> bytes:
    """Everything about a sandbox, as a PodSandboxStatusResponse."""
    record, config = sandbox.record, _config(sandbox)
    primary, *others = sandbox.addresses or [""]
    status = _new(
        "PodSandboxStatus",
        id=record.id,
        state=sandbox_state(sandbox),
        created_at=record.created_at,
        network={"ip": primary, "additional_ips": [{"ip": ip} for ip in others]},
        runtime_handler=record.runtime_handler,
    )
    _copy(config, status, "metadata", "labels", "annotations")
    status.linux.namespaces.options.CopyFrom(config.linux.security_context.namespace_options)
    info = {"pid": sandbox.warden.pid if sandbox.warden else 0, "spec": json.loads(record.spec)}
    return b"".join([list_item(status), *(info_field(json.dumps(info).encode()) if verbose else ())])


def container_status(container: Container, image: str, *, verbose: bool) -> bytes:
    """Everything about a container, as a ContainerStatusResponse. `image` is how its image is called at the moment."""
    record, config = container.record, _config(container)
    status = _new(
        "ContainerStatus",
        id=record.id,
        state=container_state(container),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image_ref=record.image_ref,
        reason=record.reason,
        message=record.message,
        log_path=record.log_path,
        resources={"linux": _resources(container.spec.resources)},
        image_id=record.image_id,
        stop_signal=_stop_signal(container),
    )
    _copy(config, status, "metadata", "image", "labels", "annotations", "mounts")
    status.image.image = image or status.image.image
    status.image.image_ref = record.image_ref
    if (credentials := container.credentials) is not None:
        user = status.user.linux
        user.uid, user.gid = credentials.uid, credentials.gid
        user.supplemental_groups.extend(credentials.groups)
    return b"".join([list_item(status), *(info_field(_container_info(container)) if verbose else ())])


def info_field(*text: bytes) -> list[bytes]:
    """The field `info` of a verbose status, in pieces: a map with one entry of the same name, which is JSON."""
    size = sum(map(len, text))
    key, value = header(1, 4) + b"info", header(2, size)
    return [header(2, len(key) + len(value) + size), key, value, *text]


def container_attributes(container: Container) -> bytes:
    """What never changes of a container's statistics: the field `attributes`, encoded."""
    attributes = _new("ContainerAttributes", id=container.id)
    _copy(_config(container), attributes, "metadata", "labels", "annotations")
    return list_item(attributes)


def container_stats(
    attributes: bytes, usage: Usage, disk: DiskUsage, now: int, mountpoint: str
) -> tuple[bytes, ...]:
    """A container's figures as an element of ListContainerStatsResponse.stats, in pieces that share `attributes`."""
    figures: dict[str, Any] = {
        "cpu": {
            "timestamp": usage.timestamp,
            "usage_core_nano_seconds": {"value": usage.cpu_nanoseconds},
        },
        "memory": {
            "timestamp": usage.timestamp,
            "working_set_bytes": {"value": usage.memory_working_set},
            "usage_bytes": {"value": usage.memory_usage},
            "rss_bytes": {"value": usage.memory_rss},
            "page_faults": {"value": usage.page_faults},
            "major_page_faults": {"value": usage.major_page_faults},
        },
        "writable_layer": {
            "timestamp": now,
            "fs_id": {"mountpoint": mountpoint},
            "used_bytes": {"value": disk.bytes},
            "inodes_used": {"value": disk.inodes},
        },
    }
    if usage.memory_available is not None:
        figures["memory"]["available_bytes"] = {"value": usage.memory_available}
    if usage.swap_usage is not None:
        figures["swap"] = {
            "timestamp": usage.timestamp,
            "swap_usage_bytes": {"value": usage.swap_usage},
        }
    body = _new("ContainerStats", **figures).SerializeToString()
    return header(1, len(attributes) + len(body)), attributes, body


def filesystem_usage(disk: DiskUsage, now: int, mountpoint: str) -> v1.FilesystemUsage:
    """What a directory tree takes, as the CRI has it."""
    return v1.FilesystemUsage(
        timestamp=now,
        fs_id=v1.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=_uint64(disk.bytes),
        inodes_used=_uint64(disk.inodes),
    )


def matches_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether the labels have every pair of the selector."""
    return all(labels.get(key) == value for key, value in selector.items())


def _config(of: PodSandbox | Container) -> Any:
    """The config of an object, as it was sent. What is stored may be damaged: then what could be read of it."""
    kind = descriptors.strict_class(descriptors.full_name(type(of.config)))
    try:
        return kind.FromString(of.record.config)
    except DecodeError:
        return kind.FromString(bytes(of.config))


def _new(name: str, **fields: Any) -> Any:
    """A message of protobuf's own class."""
    return descriptors.strict_class(f"runtime.v1.{name}")(**fields)


def _copy(source: Any, target: Any, *names: str) -> None:
    """Copy fields that two messages have in common: submessages, lists and maps."""
    for name in names:
        value = getattr(source, name)
        if not isinstance(value, Message):
            getattr(target, name).MergeFrom(value)
        elif source.HasField(name):
            getattr(target, name).CopyFrom(value)


def _container_info(container: Container) -> bytes:
    """What `crictl inspect` prints. Environment values may be secrets and are left out."""
    spec = json.loads(container.record.spec)
    spec["process"]["env"] = [entry.partition("=")[0] for entry in spec["process"]["env"]]
    pid = container.record.pid if container.state is ContainerState.RUNNING else 0
    return json.dumps({"sandboxID": container.record.sandbox_id, "pid": pid, "spec": spec}).encode()


def _resources(limits: Resources) -> dict[str, Any]:
    return {
        "cpu_period": limits.cpu_period or 0,
        "cpu_quota": limits.cpu_quota or 0,
        "cpu_shares": limits.cpu_shares or 0,
        "memory_limit_in_bytes": limits.memory_limit or 0,
        "memory_swap_limit_in_bytes": limits.memory_swap_limit or 0,
        "oom_score_adj": limits.oom_score_adj or 0,
        "cpuset_cpus": limits.cpuset_cpus or "",
        "cpuset_mems": limits.cpuset_mems or "",
        "hugepage_limits": [
            {"page_size": size, "limit": limit} for size, limit in limits.hugepage_limits.items()
        ],
        "unified": limits.unified,
    }


def _stop_signal(container: Container) -> v1.Signal:
    """The one that a stop sends. The CRI has no word for some that have numbers only."""
    name = stop_signals.cri_name(container.stop_signal, container.spec.os)
    return v1.Signal[name] if name else v1.Signal.RUNTIME_DEFAULT


def _uint64(value: int) -> v1.UInt64Value:
    return v1.UInt64Value(value=value)
