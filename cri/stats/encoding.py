"""Samples as the CRI's messages, encoded; see `cri.encode` for why in pieces.

A figure that the kernel does not have is left out, never sent as nothing. What has a `timestamp` has that of its reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cri import encode
from cri.api.runtime import v1
from cri.sandbox.spec import DiskUsage
from cri.sandbox.usage import InterfaceUsage, IoUsage, Pressure, Stall, Usage
from cri.stats.layers import Layer
from cri.stats.samples import Sample

Pieces = tuple[bytes, ...]

_LINUX, _CONTAINERS = 2, 5
"""Numbers of PodSandboxStats.linux and LinuxPodSandboxStats.containers: FreeBSD has no message of its own."""
_WRITABLE_LAYER = 4
"""Of ContainerStats."""


def figures_of_container(sample: Sample) -> bytes:
    """What a reading says, as fields of ContainerStats."""
    if sample.encoded is None:
        usage = sample.usage
        fields = {"cpu": _cpu(sample), "memory": _memory(usage), "io": _io(usage.timestamp, usage.io)}
        if usage.memory.swap is not None:
            fields["swap"] = {
                "timestamp": usage.timestamp,
                "swap_usage_bytes": {"value": usage.memory.swap},
                **_number("swap_available_bytes", usage.memory.swap_available),
            }
        sample.encoded = encode.new("ContainerStats", **fields).SerializeToString()
    return sample.encoded


def figures_of_pod(sample: Sample) -> bytes:
    """What a reading says, as fields of LinuxPodSandboxStats, without the containers."""
    if sample.encoded is None:
        usage = sample.usage
        fields = {
            "cpu": _cpu(sample),
            "memory": _memory(usage),
            "process": {
                "timestamp": usage.timestamp,
                "process_count": {"value": usage.processes.processes},
            },
            "io": _io(usage.timestamp, usage.io),
        }
        if usage.interfaces:
            default, *others = map(_interface, usage.interfaces)
            fields["network"] = {
                "timestamp": usage.timestamp,
                "default_interface": default,
                "interfaces": others,
            }
        sample.encoded = encode.new("LinuxPodSandboxStats", **fields).SerializeToString()
    return sample.encoded


def figures_of_layer(layer: Layer, mountpoint: str) -> bytes:
    """What a writable layer takes, as a field of ContainerStats."""
    fields = _filesystem(layer.usage, layer.timestamp, mountpoint)
    body: bytes = encode.new("FilesystemUsage", **fields).SerializeToString()
    return encode.header(_WRITABLE_LAYER, len(body)) + body


def container_item(pieces: Pieces, field: int = 1) -> Pieces:
    """A container's figures as an element of a list, in pieces that are shared."""
    return encode.header(field, sum(map(len, pieces))), *pieces


def pod_item(attributes: bytes, figures: bytes, containers: Sequence[Pieces]) -> Pieces:
    """A pod's figures, with those of its containers, as an element of a list, in pieces that are shared."""
    inside = [piece for pieces in containers for piece in container_item(pieces, _CONTAINERS)]
    size = len(figures) + sum(map(len, inside))
    linux = encode.header(_LINUX, size)
    return encode.header(1, len(attributes) + len(linux) + size), attributes, linux, figures, *inside


def filesystem_usage(layer: Layer, mountpoint: str) -> v1.FilesystemUsage:
    """What is on a filesystem, as ImageFsInfo has it."""
    return v1.FilesystemUsage(
        timestamp=layer.timestamp,
        fs_id=v1.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=v1.UInt64Value(value=layer.usage.bytes),
        inodes_used=v1.UInt64Value(value=layer.usage.inodes),
    )


def _filesystem(usage: DiskUsage, timestamp: int, mountpoint: str) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "fs_id": {"mountpoint": mountpoint},
        "used_bytes": {"value": usage.bytes},
        "inodes_used": {"value": usage.inodes},
    }


def _cpu(sample: Sample) -> dict[str, Any]:
    cpu = sample.usage.cpu
    return {
        "timestamp": sample.usage.timestamp,
        "usage_core_nano_seconds": {"value": cpu.total},
        **_number("usage_nano_cores", sample.nano_cores),
        **_psi(cpu.pressure),
    }


def _memory(usage: Usage) -> dict[str, Any]:
    memory = usage.memory
    return {
        "timestamp": usage.timestamp,
        "working_set_bytes": {"value": memory.working_set},
        **_number("available_bytes", memory.available),
        "usage_bytes": {"value": memory.usage},
        "rss_bytes": {"value": memory.rss},
        "page_faults": {"value": memory.page_faults},
        "major_page_faults": {"value": memory.major_page_faults},
        **_psi(memory.pressure),
    }


def _io(timestamp: int, io: IoUsage) -> dict[str, Any] | None:
    """The CRI has nothing of devices, only PSI."""
    return None if io.pressure is None else {"timestamp": timestamp, **_psi(io.pressure)}


def _interface(interface: InterfaceUsage) -> dict[str, Any]:
    return {
        "name": interface.name,
        "rx_bytes": {"value": interface.received_bytes},
        "rx_errors": {"value": interface.receive_errors},
        "tx_bytes": {"value": interface.sent_bytes},
        "tx_errors": {"value": interface.send_errors},
    }


def _psi(pressure: Pressure | None) -> Mapping[str, Any]:
    if pressure is None:
        return {}
    return {"psi": {"Full": _stall(pressure.full), "Some": _stall(pressure.some)}}


def _stall(stall: Stall) -> dict[str, Any]:
    return {"Total": stall.total, "Avg10": stall.avg10, "Avg60": stall.avg60, "Avg300": stall.avg300}


def _number(name: str, value: int | None) -> Mapping[str, Any]:
    return {} if value is None else {name: {"value": value}}
