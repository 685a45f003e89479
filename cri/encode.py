"""What the node knows, as CRI messages; list items as cached bytes.

Protobuf concatenates: the encoding of a list message is the concatenation of its items, each with its tag and length.
So an item is encoded once per change of its object, and a List answer is a join of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import betterproto2

from cri.api.runtime import v1
from cri.sandbox import wire
from cri.sandbox.container import Container
from cri.sandbox.machine import ContainerState, SandboxState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import DiskUsage, Resources, Usage

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


def list_item(message: betterproto2.Message) -> bytes:
    """A message as an element of the repeated field 1 that every List response consists of."""
    body = bytes(message)
    length, size = bytearray(), len(body)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"\x0a" + bytes(length) + body


def sandbox_item(sandbox: PodSandbox) -> bytes:
    """The sandbox as an element of ListPodSandboxResponse.items."""
    if sandbox.encoded is None:
        config, record = sandbox.config, sandbox.record
        sandbox.encoded = list_item(
            v1.PodSandbox(
                id=record.id,
                metadata=config.metadata,
                state=sandbox_state(sandbox),
                created_at=record.created_at,
                labels=config.labels,
                annotations=config.annotations,
                runtime_handler=record.runtime_handler,
            )
        )
    return sandbox.encoded


def container_item(container: Container) -> bytes:
    """The container as an element of ListContainersResponse.containers."""
    if container.encoded is None:
        config, record = container.config, container.record
        container.encoded = list_item(
            v1.Container(
                id=record.id,
                pod_sandbox_id=record.sandbox_id,
                metadata=config.metadata,
                image=config.image,
                image_ref=record.image_ref,
                state=container_state(container),
                created_at=record.created_at,
                labels=config.labels,
                annotations=config.annotations,
                image_id=record.image_id,
            )
        )
    return container.encoded


def sandbox_state(sandbox: PodSandbox) -> v1.PodSandboxState:
    """The state as clients are shown it."""
    return _SANDBOX_STATE[sandbox.state]


def container_state(container: Container) -> v1.ContainerState:
    """The state as clients are shown it."""
    return _CONTAINER_STATE[container.state]


def sandbox_status(sandbox: PodSandbox) -> v1.PodSandboxStatus:
    """Everything about a sandbox."""
    config, record = sandbox.config, sandbox.record
    linux = config.linux or v1.LinuxPodSandboxConfig()
    context = linux.security_context or v1.LinuxSandboxSecurityContext()
    primary, *others = sandbox.addresses or [""]
    return v1.PodSandboxStatus(
        id=record.id,
        metadata=config.metadata,
        state=sandbox_state(sandbox),
        created_at=record.created_at,
        network=v1.PodSandboxNetworkStatus(ip=primary, additional_ips=[v1.PodIp(ip=ip) for ip in others]),
        linux=v1.LinuxPodSandboxStatus(
            namespaces=v1.Namespace(options=context.namespace_options or v1.NamespaceOption())
        ),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=record.runtime_handler,
    )


def container_status(container: Container, image: v1.ImageSpec) -> v1.ContainerStatus:
    """Everything about a container. `image` is how its image is called at the moment."""
    config, record = container.config, container.record
    credentials = container.credentials
    return v1.ContainerStatus(
        id=record.id,
        metadata=config.metadata,
        state=container_state(container),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=image,
        image_ref=record.image_ref,
        reason=record.reason,
        message=record.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=list(config.mounts),
        log_path=record.log_path,
        resources=v1.ContainerResources(linux=_resources(container.spec.resources)),
        image_id=record.image_id,
        user=None
        if credentials is None
        else v1.ContainerUser(
            linux=v1.LinuxContainerUser(
                uid=credentials.uid, gid=credentials.gid, supplemental_groups=list(credentials.groups)
            )
        ),
        stop_signal=_stop_signal(record.stop_signal),
    )


def sandbox_info(sandbox: PodSandbox) -> dict[str, str]:
    """What verbose status adds: `crictl inspectp` prints it."""
    return _info({"pid": sandbox.warden.pid if sandbox.warden else 0, "spec": wire.encode(sandbox.spec)})


def container_info(container: Container) -> dict[str, str]:
    """What verbose status adds: `crictl inspect` prints it. Environment values may be secrets and are left out."""
    spec = wire.encode(container.spec)
    spec["process"]["env"] = [entry.partition("=")[0] for entry in spec["process"]["env"]]
    pid = container.record.pid if container.state is ContainerState.RUNNING else 0
    return _info({"sandboxID": container.record.sandbox_id, "pid": pid, "spec": spec})


def container_stats(
    container: Container, usage: Usage | None, disk: DiskUsage, now: int, mountpoint: str
) -> v1.ContainerStats:
    """A container's figures; without `usage` (it does not run) only those of its disk."""
    config = container.config
    stats = v1.ContainerStats(
        attributes=v1.ContainerAttributes(
            id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        ),
        writable_layer=filesystem_usage(disk, now, mountpoint),
    )
    if usage is not None:
        stats.cpu = v1.CpuUsage(
            timestamp=usage.timestamp, usage_core_nano_seconds=_uint64(usage.cpu_nanoseconds)
        )
        stats.memory = v1.MemoryUsage(
            timestamp=usage.timestamp,
            working_set_bytes=_uint64(usage.memory_working_set),
            available_bytes=None if usage.memory_available is None else _uint64(usage.memory_available),
            usage_bytes=_uint64(usage.memory_usage),
            rss_bytes=_uint64(usage.memory_rss),
            page_faults=_uint64(usage.page_faults),
            major_page_faults=_uint64(usage.major_page_faults),
        )
        if usage.swap_usage is not None:
            stats.swap = v1.SwapUsage(timestamp=usage.timestamp, swap_usage_bytes=_uint64(usage.swap_usage))
    return stats


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


def joined(items: Iterable[bytes]) -> bytes:
    """A List response out of its items."""
    return b"".join(items)


def _resources(limits: Resources) -> v1.LinuxContainerResources:
    return v1.LinuxContainerResources(
        cpu_period=limits.cpu_period or 0,
        cpu_quota=limits.cpu_quota or 0,
        cpu_shares=limits.cpu_shares or 0,
        memory_limit_in_bytes=limits.memory_limit or 0,
        memory_swap_limit_in_bytes=limits.memory_swap_limit or 0,
        oom_score_adj=limits.oom_score_adj or 0,
        cpuset_cpus=limits.cpuset_cpus or "",
        cpuset_mems=limits.cpuset_mems or "",
        hugepage_limits=[
            v1.HugepageLimit(page_size=size, limit=limit) for size, limit in limits.hugepage_limits.items()
        ],
        unified=dict(limits.unified),
    )


def _stop_signal(name: str) -> v1.Signal:
    try:
        return v1.Signal[name or "SIGTERM"]
    except KeyError:
        # An image may name a signal by number; the CRI has no word for that.
        return v1.Signal.RUNTIME_DEFAULT


def _uint64(value: int) -> v1.UInt64Value:
    return v1.UInt64Value(value=value)


def _info(facts: dict[str, Any]) -> dict[str, str]:
    return {"info": json.dumps(facts)}
