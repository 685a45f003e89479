"""Usages of all kinds, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from cri.pod_metrics.metric import Filesystem, Subject
from cri.sandbox.spec import DiskUsage, Resources
from cri.sandbox.usage import (
    CpuUsage,
    DeviceUsage,
    InterfaceUsage,
    IoUsage,
    MemoryUsage,
    Pressure,
    ProcessUsage,
    Stall,
    Usage,
)

counts = st.integers(0, (1 << 63) - 1)
maybe = st.none() | counts
percents = st.floats(0, 100)
names = st.text('az09\\/:" \n\0é\u0661\udcff', max_size=8)
"""What a kernel calls something may be any bytes."""
stalls = st.builds(Stall, counts, percents, percents, percents)
pressures = st.none() | st.builds(Pressure, stalls, stalls)
limits = st.none() | st.integers(-1, (1 << 63) - 1)

usages = st.builds(
    Usage,
    timestamp=counts,
    cpu=st.builds(CpuUsage, counts, maybe, maybe, maybe, maybe, maybe, pressures),
    memory=st.builds(
        MemoryUsage,
        **dict.fromkeys(("usage", "working_set", "rss", "page_faults", "major_page_faults"), counts),
        **dict.fromkeys(
            (
                *("available", "limit", "cache", "mapped_file", "kernel", "peak", "limit_hits", "oom_kills"),
                *("swap", "swap_available", "swap_limit"),
            ),
            maybe,
        ),
        pressure=pressures,
    ),
    io=st.builds(
        IoUsage,
        st.lists(
            st.builds(DeviceUsage, names, st.integers(0, 300), st.integers(0, 300), *[counts] * 4), max_size=3
        ).map(tuple),
        pressures,
    ),
    processes=st.builds(ProcessUsage, counts, maybe, maybe, maybe, maybe),
    interfaces=st.lists(st.builds(InterfaceUsage, names, *[counts] * 8), max_size=3).map(tuple),
)

resources = st.builds(
    Resources,
    cpu_period=limits,
    cpu_quota=limits,
    cpu_shares=limits,
    memory_limit=limits,
    memory_swap_limit=limits,
    unified=st.dictionaries(
        st.sampled_from(["memory.min", "memory.low"]),
        st.text("09max -\u0661", max_size=25) | counts.map(str),
        max_size=2,
    ),
)

containers = st.builds(
    Subject,
    usages,
    counts,
    resources,
    st.none() | st.builds(DiskUsage, counts, counts),
    st.none() | st.builds(Filesystem, names, counts, counts, counts),
)
pods = st.builds(Subject, usages, counts)
