"""What a cgroup has used so far, out of the files of either version."""

from __future__ import annotations

import time
from collections.abc import Mapping

from cri.sandbox.linux.cgroup_files import fields, number
from cri.sandbox.spec import Usage

_NO_LIMIT = 1 << 62
"""Without a limit, version 1 shows the largest number of pages there is."""


def usage_v1(directories: Mapping[str, str]) -> Usage:
    """Of a group in several hierarchies, by controller."""
    memory = directories.get("memory", "")
    stat = fields(f"{memory}/memory.stat")
    used = number(f"{memory}/memory.usage_in_bytes") or 0
    limit = number(f"{memory}/memory.limit_in_bytes")
    together = number(f"{memory}/memory.memsw.usage_in_bytes")
    working = max(used - stat.get("total_inactive_file", 0), 0)
    return Usage(
        timestamp=time.time_ns(),
        cpu_nanoseconds=number(f"{directories.get('cpuacct', '')}/cpuacct.usage") or 0,
        memory_usage=used,
        memory_working_set=working,
        memory_rss=stat.get("total_rss", 0),
        memory_available=max(limit - working, 0) if limit is not None and limit < _NO_LIMIT else None,
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        swap_usage=max(together - used, 0) if together is not None else None,
        processes=number(f"{directories.get('pids', '')}/pids.current") or 0,
    )


def usage_v2(directory: str) -> Usage:
    """Of a group in the one hierarchy."""
    stat = fields(f"{directory}/memory.stat")
    used = number(f"{directory}/memory.current") or 0
    limit = number(f"{directory}/memory.max")
    working = max(used - stat.get("inactive_file", 0), 0)
    return Usage(
        timestamp=time.time_ns(),
        cpu_nanoseconds=fields(f"{directory}/cpu.stat").get("usage_usec", 0) * 1000,
        memory_usage=used,
        memory_working_set=working,
        memory_rss=stat.get("anon", 0),
        memory_available=max(limit - working, 0) if limit is not None else None,
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        swap_usage=number(f"{directory}/memory.swap.current"),
        processes=number(f"{directory}/pids.current") or 0,
    )
