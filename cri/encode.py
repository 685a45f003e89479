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

import structlog
from google.protobuf.message import DecodeError, Message

from cri.api.runtime import v1
from cri.rpc import descriptors, messages
from cri.sandbox import stop_signals, wire
from cri.sandbox.container import Container
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import ContainerSpec, Credentials, Resources
from cri.state import ContainerRecord, ImageRecord, SandboxRecord

log = structlog.get_logger(__name__)

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


LONG = 200
"""Entries that are copied in one go."""


def header(field: int, size: int) -> bytes:
    """What stands before the `size` bytes of a string, bytes or message field."""
    return _varint(field << 3 | 2) + _varint(size)


def list_item(message: Message) -> bytes:
    """A message as an element of the repeated field 1 that every List response consists of."""
    body: bytes = message.SerializeToString()
    return header(1, len(body)) + body


def sandbox_item(sandbox: PodSandbox) -> bytes:
    """The sandbox as an element of ListPodSandboxResponse.items."""
    record = sandbox.record
    item = new(
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
    item = new(
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
    uid = _uid(user)
    item = new(
        "Image",
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.size,
        username="" if uid is not None else user,
        pinned=image.pinned,
    )
    if uid is not None:
        item.uid.value = uid
    return list_item(item)


def sandbox_state(sandbox: PodSandbox) -> v1.PodSandboxState:
    """The state as clients are shown it."""
    return _SANDBOX_STATE[sandbox.state]


def container_state(container: Container) -> v1.ContainerState:
    """The state as clients are shown it."""
    return _CONTAINER_STATE[container.state]


def sandbox_status(sandbox: PodSandbox, record: SandboxRecord) -> bytes:
    """Everything about a sandbox, as a record of it has it: a PodSandboxStatus."""
    config = _config(sandbox, record)
    primary, *others = record.addresses or [""]
    status = new(
        "PodSandboxStatus",
        id=record.id,
        state=_SANDBOX_STATE[SandboxState(record.state)],
        created_at=record.created_at,
        network={"ip": primary, "additional_ips": [{"ip": ip} for ip in others]},
        runtime_handler=record.runtime_handler,
    )
    _copy(config, status, "metadata", "labels", "annotations")
    status.linux.namespaces.options.CopyFrom(config.linux.security_context.namespace_options)
    encoded: bytes = status.SerializeToString()
    return encoded


def container_status(container: Container, record: ContainerRecord, spec: ContainerSpec, image: str) -> bytes:
    """Everything about a container, as a record and a spec of it have it: a ContainerStatus.

    `image` is how its image is called at the moment.
    """
    config = _config(container, record)
    status = new(
        "ContainerStatus",
        id=record.id,
        state=_CONTAINER_STATE[ContainerState(record.state)],
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image_ref=record.image_ref,
        reason=record.reason,
        message=record.message,
        log_path=record.log_path,
        resources={"linux": _resources(spec.resources)},
        image_id=record.image_id,
        stop_signal=_stop_signal(container),
    )
    _copy(config, status, "metadata", "image", "labels", "annotations", "mounts")
    status.image.image = image or status.image.image
    status.image.image_ref = record.image_ref
    if record.credentials is not None:
        credentials, user = wire.decode(Credentials, record.credentials), status.user.linux
        user.uid, user.gid = credentials.uid, credentials.gid
        user.supplemental_groups.extend(credentials.groups)
    encoded: bytes = status.SerializeToString()
    return encoded


def number(field: int, value: int) -> bytes:
    """A field of an integer or an enumeration that is not negative."""
    return _varint(field << 3) + _varint(value)


def info_field(*text: bytes) -> list[bytes]:
    """The field `info` of a verbose status, in pieces: a map with one entry of the same name, which is JSON."""
    size = sum(map(len, text))
    key, value = header(1, 4) + b"info", header(2, size)
    return [header(2, len(key) + len(value) + size), key, value, *text]


def container_attributes(container: Container) -> bytes:
    """What never changes of a container's statistics: the field `attributes`, encoded."""
    attributes = new("ContainerAttributes", id=container.id)
    _copy(_config(container), attributes, "metadata", "labels", "annotations")
    return list_item(attributes)


def sandbox_attributes(sandbox: PodSandbox) -> bytes:
    """What never changes of a pod's statistics: the field `attributes`, encoded."""
    attributes = new("PodSandboxAttributes", id=sandbox.id)
    _copy(_config(sandbox), attributes, "metadata", "labels", "annotations")
    return list_item(attributes)


def matches_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether the labels have every pair of the selector."""
    return all(labels.get(key) == value for key, value in selector.items())


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _config(of: PodSandbox | Container, record: SandboxRecord | ContainerRecord | None = None) -> Any:
    """The config of an object, as it was sent. What is stored may be damaged: then what could be read of it."""
    kind = descriptors.strict_class(descriptors.full_name(type(of.config)))
    try:
        return kind.FromString((record or of.record).config)
    except DecodeError:
        return messages.strict(of.config)


def new(name: str, **fields: Any) -> Any:
    """A message of protobuf's own class, which takes nothing that a client could not read.

    A value that cannot be in it costs that field alone, never the list or status that it is a part of: it is shown as far
    as it can be, and the log says so once.
    """
    kind = descriptors.strict_class(f"runtime.v1.{name}")
    try:
        return kind(**fields)
    except (ValueError, TypeError, OverflowError):  # text that is no UTF-8 is a ValueError
        return _what_can_be(kind, fields)


def _what_can_be(kind: type[Message], fields: Mapping[str, Any]) -> Message:
    made = kind()
    for name, value in fields.items():
        try:
            made.MergeFrom(kind(**{name: value}))
        except (ValueError, TypeError, OverflowError) as error:
            if isinstance(value, str):
                made.MergeFrom(kind(**{name: value.encode(errors="backslashreplace").decode()}))
            place = (kind.DESCRIPTOR.name, str(fields.get("id", "")), name)
            if place not in _told:
                _told[place] = None
                if len(_told) > MOST_TOLD:
                    del _told[next(iter(_told))]
                log.error("a field cannot be shown as it is", object=place[:2], field=name, reason=str(error))
    return made


MOST_TOLD = 1000
_told: dict[tuple[str, str, str], None] = {}
"""What the log has heard of already, the oldest first."""


def _copy(source: Any, target: Any, *names: str) -> None:
    """Copy fields that two messages have in common: submessages, lists and maps."""
    for name in names:
        value = getattr(source, name)
        if not isinstance(value, Message):
            _copy_many(value, getattr(target, name))
        elif source.HasField(name):
            getattr(target, name).CopyFrom(value)


def _copy_many(source: Any, target: Any) -> None:
    """Copy a list or a map; a long one in pieces, as nobody else can run while protobuf copies."""
    if len(source) <= LONG:
        target.MergeFrom(source)
    elif hasattr(source, "items"):
        for key, value in source.items():
            target[key] = value  # no map of these has messages
    else:
        for first in range(0, len(source), LONG):
            target.extend(source[first : first + LONG])


def sandbox_info(sandbox: PodSandbox) -> bytes:
    """What `crictl inspectp` prints beside the status."""
    pid = sandbox.warden.pid if sandbox.warden else 0
    return f'{{"pid": {pid}, "spec": {wire.dumps(sandbox.spec)}}}'.encode()


def container_info(container: Container) -> bytes:
    """What `crictl inspect` prints beside the status. Environment values may be secrets and are left out."""
    spec = container.spec
    names = tuple(entry.partition("=")[0] for entry in spec.process.env)
    spec = wire.replace(spec, process=wire.replace(spec.process, env=names))
    pid = container.record.pid if container.state is ContainerState.RUNNING else 0
    head = json.dumps({"sandboxID": container.record.sandbox_id, "pid": pid})
    return f'{head[:-1]}, "spec": {wire.dumps(spec)}}}'.encode()


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


def _uid(user: str) -> int | None:
    """The id that a user is named by, if it is one; of images of earlier releases it may be none that there can be."""
    if not (user.isascii() and user.isdecimal()) or len(user) > 18:
        return None
    return int(user)
