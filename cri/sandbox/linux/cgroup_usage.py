"""What a cgroup has used so far, out of the files of either version.

Sources: Documentation/admin-guide/cgroup-v1/{cpuacct,memory,blkio-controller,pids}.rst, cgroup-v2.rst, accounting/psi.rst.

The processes are in a group inside the one with the limits, which shows the same limits. What is counted where a limit is met is
therefore counted in either of them: version 1 adds up nothing of that, version 2 only what is in `memory.events`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from cri.sandbox.linux.block_devices import device_name
from cri.sandbox.linux.kept_files import Read
from cri.sandbox.usage import (
    CpuUsage,
    DeviceUsage,
    IoUsage,
    MemoryUsage,
    Pressure,
    ProcessUsage,
    Stall,
    Usage,
)

_NO_LIMIT = 1 << 62
"""Without a limit, version 1 shows the largest number of pages there is."""
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_IO_V1 = "blkio.throttle.io_service_bytes_recursive"
_IOS_V1 = "blkio.throttle.io_serviced_recursive"

Directories: TypeAlias = Mapping[str, str]


def usage_v1(read: Read, directories: Directories, inner: Directories) -> Usage | None:
    """Of a group in several hierarchies, by controller; None if it is gone. `inner`: the group that processes are in."""
    total = _number(read, directories, "cpuacct", "cpuacct.usage")
    memory = _memory_v1(read, directories, inner)
    tasks = _number(read, directories, "pids", "pids.current")
    if total is None and memory is None and tasks is None:
        return None
    timestamp = time.time_ns()
    unified = directories.get("unified")
    quota = [
        _fields(read(f"{group['cpu']}/cpu.stat")) for group in (directories, inner) if "cpu" in group
    ] or [{}]
    # In ticks; cpuacct.usage_user and usage_sys are of another account than the total.
    parts = _fields(read(f"{directories['cpuacct']}/cpuacct.stat")) if "cpuacct" in directories else {}
    cpu = CpuUsage(
        total=total or 0,
        user=_of_ticks(parts.get("user")),
        system=_of_ticks(parts.get("system")),
        periods=_most(quota, "nr_periods"),
        throttled_periods=_most(quota, "nr_throttled"),
        throttled=_most(quota, "throttled_time"),
        pressure=_pressure(read, unified, "cpu"),
    )
    memory = replace(memory or MemoryUsage(), pressure=_pressure(read, unified, "memory"))
    io = IoUsage(_devices_v1(read, directories.get("blkio")), _pressure(read, unified, "io"))
    limit = _number(read, directories, "pids", "pids.max")
    return Usage(timestamp, cpu, memory, io, ProcessUsage(tasks or 0, tasks, limit))


def usage_v2(read: Read, directory: str, inner: str) -> Usage | None:
    """Of a group in the one hierarchy; None if it is gone."""
    used = _fields(read(f"{directory}/cpu.stat"))
    if not used:
        return None
    timestamp = time.time_ns()
    quota = [used, _fields(read(f"{inner}/cpu.stat"))]
    cpu = CpuUsage(
        total=used.get("usage_usec", 0) * 1000,
        user=_thousandfold(used.get("user_usec")),
        system=_thousandfold(used.get("system_usec")),
        periods=_most(quota, "nr_periods"),
        throttled_periods=_most(quota, "nr_throttled"),
        throttled=_thousandfold(_most(quota, "throttled_usec")),
        pressure=_pressure(read, directory, "cpu"),
    )
    io = IoUsage(devices_v2(read(f"{directory}/io.stat")), _pressure(read, directory, "io"))
    tasks = _value(read(f"{directory}/pids.current"))
    limit = _value(read(f"{directory}/pids.max"))
    memory = _memory_v2(read, directory)
    return Usage(timestamp, cpu, memory, io, ProcessUsage(tasks or 0, tasks, limit))


def _memory_v1(read: Read, directories: Directories, inner: Directories) -> MemoryUsage | None:
    at = directories.get("memory")
    if at is None or (used := _value(read(f"{at}/memory.usage_in_bytes"))) is None:
        return None
    stat = _fields(read(f"{at}/memory.stat"))
    limit = _limit(read(f"{at}/memory.limit_in_bytes"))
    together = _value(read(f"{at}/memory.memsw.usage_in_bytes"))
    both = _limit(read(f"{at}/memory.memsw.limit_in_bytes"))
    swap = None if together is None else max(together - used, 0)
    swap_limit = None if both is None or limit is None else max(both - limit, 0)
    groups = [at, inner["memory"]]
    # Charged with swap first, and so refused there, where the two limits are the same.
    refusals = ("memory.failcnt", "memory.memsw.failcnt")
    return MemoryUsage(
        usage=used,
        working_set=(working := max(used - stat.get("total_inactive_file", 0), 0)),
        rss=stat.get("total_rss", 0),
        available=None if limit is None else max(limit - working, 0),
        limit=limit,
        cache=stat.get("total_cache"),
        mapped_file=stat.get("total_mapped_file"),
        kernel=_value(read(f"{at}/memory.kmem.usage_in_bytes")),
        peak=_value(read(f"{at}/memory.max_usage_in_bytes")),
        limit_hits=sum(_value(read(f"{group}/{name}")) or 0 for group in groups for name in refusals),
        oom_kills=sum(_fields(read(f"{group}/memory.oom_control")).get("oom_kill", 0) for group in groups),
        page_faults=max(stat.get("total_pgfault", 0) - stat.get("total_pgmajfault", 0), 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        swap=swap,
        swap_available=None if swap is None or swap_limit is None else max(swap_limit - swap, 0),
        swap_limit=swap_limit if swap is not None else None,
    )


def _memory_v2(read: Read, directory: str) -> MemoryUsage:
    pressure = _pressure(read, directory, "memory")
    if (used := _value(read(f"{directory}/memory.current"))) is None:
        return MemoryUsage(pressure=pressure)
    stat = _fields(read(f"{directory}/memory.stat"))
    events = _fields(read(f"{directory}/memory.events"))
    limit = _value(read(f"{directory}/memory.max"))
    swap = _value(read(f"{directory}/memory.swap.current"))
    swap_limit = _value(read(f"{directory}/memory.swap.max"))
    return MemoryUsage(
        usage=used,
        working_set=(working := max(used - stat.get("inactive_file", 0), 0)),
        rss=stat.get("anon", 0),
        available=None if limit is None else max(limit - working, 0),
        limit=limit,
        cache=stat.get("file"),
        mapped_file=stat.get("file_mapped"),
        kernel=stat.get("kernel"),
        peak=_value(read(f"{directory}/memory.peak")),
        limit_hits=events.get("max"),
        oom_kills=events.get("oom_kill"),
        page_faults=max(stat.get("pgfault", 0) - stat.get("pgmajfault", 0), 0),
        major_page_faults=stat.get("pgmajfault", 0),
        swap=swap,
        swap_available=None if swap is None or swap_limit is None else max(swap_limit - swap, 0),
        swap_limit=swap_limit,
        pressure=pressure,
    )


def _devices_v1(read: Read, directory: str | None) -> tuple[DeviceUsage, ...]:
    """What went to block devices at once; version 1 does not tell whose the pages are that are written back later."""
    if directory is None:
        return ()
    counted: dict[str, dict[str, int]] = {}
    for file, names in ((_IO_V1, ("read_bytes", "written_bytes")), (_IOS_V1, ("reads", "writes"))):
        for line in (read(f"{directory}/{file}") or b"").splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in (b"Read", b"Write"):
                name = names[words[1] == b"Write"]
                counted.setdefault(words[0].decode(), {})[name] = int(words[2])
    return tuple(_device(numbers, counts) for numbers, counts in counted.items())


_V2 = {"rbytes": "read_bytes", "wbytes": "written_bytes", "rios": "reads", "wios": "writes"}


def devices_v2(content: bytes | None) -> tuple[DeviceUsage, ...]:
    """What io.stat says: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`; a device that was not used has no counts."""
    found = []
    for line in (content or b"").decode().splitlines():
        numbers, *words = line.split()
        pairs = (word.partition("=") for word in words)
        counts = {_V2[name]: int(value) for name, _, value in pairs if name in _V2}
        if counts:
            found.append(_device(numbers, counts))
    return tuple(found)


def _device(numbers: str, counts: Mapping[str, int]) -> DeviceUsage:
    major, _, minor = numbers.partition(":")
    return DeviceUsage(device_name(numbers), int(major), int(minor), **counts)


def _pressure(read: Read, directory: str | None, resource: str) -> Pressure | None:
    return None if directory is None else pressure(read(f"{directory}/{resource}.pressure"))


def pressure(content: bytes | None) -> Pressure | None:
    """What a file of PSI says: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`."""
    words = (content or b"").replace(b"=", b" ").split()
    stalls = {
        words[at]: Stall(
            int(words[at + 8]) * 1000, float(words[at + 2]), float(words[at + 4]), float(words[at + 6])
        )
        for at in range(0, len(words) - 8, 9)
    }
    if b"some" not in stalls:
        return None
    # Before Linux 5.13 there is no `full` of the processor.
    return Pressure(stalls[b"some"], stalls.get(b"full", Stall(0, 0.0, 0.0, 0.0)))


def _fields(content: bytes | None) -> dict[str, int]:
    """The numbers of a file of names and numbers."""
    words = (content or b"").decode().split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}


def _number(read: Read, directories: Directories, controller: str, file: str) -> int | None:
    at = directories.get(controller)
    return None if at is None else _value(read(f"{at}/{file}"))


def _value(content: bytes | None) -> int | None:
    """The number in a file; None for `max`."""
    text = (content or b"").strip()
    return int(text) if text.isdigit() else None


def _limit(content: bytes | None) -> int | None:
    limit = _value(content)
    return limit if limit is not None and limit < _NO_LIMIT else None


def _most(of: list[dict[str, int]], name: str) -> int | None:
    """The most that any says. Each limit counts for itself when it was met; how often both were is not known."""
    return max((found[name] for found in of if name in found), default=None)


def _of_ticks(ticks: int | None) -> int | None:
    """Nanoseconds."""
    return None if ticks is None else ticks * _TICK


def _thousandfold(value: int | None) -> int | None:
    return None if value is None else value * 1000
