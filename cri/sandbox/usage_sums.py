"""What several containers have used together: where no kernel adds it up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from cri.sandbox.usage import CpuUsage, DeviceUsage, IoUsage, MemoryUsage, ProcessUsage, Usage

_Part = TypeVar("_Part", CpuUsage, MemoryUsage, ProcessUsage)

_NO_SUM = frozenset(
    {"pressure", "available", "limit", "peak", "swap_available", "swap_limit", "threads_limit"}
)
"""Limits are each container's own; so is when it had most, and when its tasks waited."""


def total(usages: Sequence[Usage]) -> Usage:
    """The sum, of what has one; a figure that one of them lacks is lacking."""
    return Usage(
        timestamp=min((usage.timestamp for usage in usages), default=time.time_ns()),
        cpu=_sum(CpuUsage, [usage.cpu for usage in usages]),
        memory=_sum(MemoryUsage, [usage.memory for usage in usages]),
        io=IoUsage(_devices(device for usage in usages for device in usage.io.devices)),
        processes=_sum(ProcessUsage, [usage.processes for usage in usages]),
    )


def _sum(kind: type[_Part], parts: Sequence[_Part]) -> _Part:
    sums: dict[str, Any] = {}
    for name in (field.name for field in fields(kind) if field.name not in _NO_SUM):
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        if values and len(values) == len(parts):
            sums[name] = sum(values)
    return kind(**sums)


def _devices(devices: Iterable[DeviceUsage]) -> tuple[DeviceUsage, ...]:
    found: dict[tuple[int, int], DeviceUsage] = {}
    for one in devices:
        key = (one.major, one.minor)
        before = found.get(key)
        found[key] = one if before is None else _both(before, one)
    return tuple(found.values())


def _both(first: DeviceUsage, second: DeviceUsage) -> DeviceUsage:
    return DeviceUsage(
        first.name,
        first.major,
        first.minor,
        first.read_bytes + second.read_bytes,
        first.written_bytes + second.written_bytes,
        first.reads + second.reads,
        first.writes + second.writes,
    )
