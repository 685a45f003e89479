"""The table has what critest and dashboards ask for, and says what the kernel said."""

from __future__ import annotations

import re

from hypothesis import given

from cri.pod_metrics.metric import BASE_LABELS, Filesystem, Subject
from cri.pod_metrics.table import TABLE
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
from tests.pod_metrics.demanded import NETWORK, OF_CONTAINERS, OPTIONAL_DESCRIPTORS, OPTIONAL_VALUES
from tests.pod_metrics.usages import containers, pods

SECOND = 10**9
CRITEST = Resources(
    cpu_period=100_000, cpu_quota=20_000, cpu_shares=1024, memory_limit=64 << 20, memory_swap_limit=64 << 20
)
"""What critest's container is limited to."""
DISK = Filesystem("/dev/vda1", 1000, 100, 90)


def values(subject: Subject) -> dict[str, dict[tuple[str, ...], int]]:
    found = {metric.name: dict(metric.values(subject)) for metric in TABLE}
    return {name: series for name, series in found.items() if series}


def test_the_names_are_those_that_critest_knows() -> None:
    names = [metric.name for metric in TABLE]
    assert len(names) == len(set(names))
    demanded = OF_CONTAINERS | NETWORK | OPTIONAL_VALUES
    assert len(demanded | OPTIONAL_DESCRIPTORS) == 56
    assert demanded <= set(names)
    # critest wants a value of every descriptor: another name needs one on every system, or must not be here.
    assert set(names) <= demanded | OPTIONAL_DESCRIPTORS


def test_descriptors_are_what_prometheus_takes() -> None:
    for metric in TABLE:
        assert metric.help
        assert re.fullmatch("[a-z_]+", metric.name)
        assert all(re.fullmatch("[a-z_]+", label) for label in metric.labels)
        assert len(set(metric.labels)) == len(metric.labels)


@given(containers)
def test_a_container_has_every_value_that_critest_demands(subject: Subject) -> None:
    subject = Subject(subject.usage, subject.started_at, CRITEST, DiskUsage(1, 2), DISK)
    assert set(values(subject)) >= OF_CONTAINERS


@given(pods)
def test_of_a_pod_nothing_is_made_up(subject: Subject) -> None:
    bare = values(Subject(Usage(timestamp=5), 7))
    assert not [name for name in bare if name.startswith(("container_spec", "container_fs"))]
    assert "container_memory_cache" not in bare
    full = values(subject)
    assert set(full) >= set(bare)
    assert bool(subject.usage.interfaces) == (set(full) >= NETWORK)


def test_what_the_kernel_said() -> None:
    stall = Pressure(Stall(12 * SECOND, 0, 0, 0), Stall(3 * SECOND, 0, 0, 0))
    usage = Usage(
        timestamp=1_700_000_000 * SECOND + 7,
        cpu=CpuUsage(
            total=9 * SECOND + 999_999_999, user=5 * SECOND, system=4 * SECOND, periods=11, throttled_periods=7,
            throttled=8 * SECOND, pressure=stall,
        ),
        memory=MemoryUsage(
            usage=100, working_set=80, rss=60, cache=20, mapped_file=10, kernel=4, peak=120, limit_hits=3,
            oom_kills=1, page_faults=50, major_page_faults=2, swap=30,
        ),
        io=IoUsage((DeviceUsage("vda", 254, 0, 1, 2, 3, 4), DeviceUsage("8:16", 8, 16, 5, 6, 7, 8))),
        processes=ProcessUsage(processes=2, threads=5, threads_limit=100, descriptors=9, sockets=1),
        interfaces=(InterfaceUsage("eth0", 1, 2, 3, 4, 5, 6, 7, 8),),
    )  # fmt: skip
    limits = Resources(cpu_period=1000, cpu_quota=500, memory_limit=-1, unified={"memory.min": "4096"})
    assert values(Subject(usage, 1_600_000_000 * SECOND, limits, DiskUsage(300, 3), DISK)) == {
        "container_cpu_usage_seconds_total": {("total",): 9},
        "container_cpu_user_seconds_total": {(): 5},
        "container_cpu_system_seconds_total": {(): 4},
        "container_cpu_cfs_periods_total": {(): 11},
        "container_cpu_cfs_throttled_periods_total": {(): 7},
        "container_cpu_cfs_throttled_seconds_total": {(): 8},
        "container_memory_usage_bytes": {(): 100},
        "container_memory_working_set_bytes": {(): 80},
        "container_memory_rss": {(): 60},
        "container_memory_cache": {(): 20},
        "container_memory_mapped_file": {(): 10},
        "container_memory_kernel_usage": {(): 4},
        "container_memory_swap": {(): 30},
        "container_memory_max_usage_bytes": {(): 120},
        "container_memory_failcnt": {(): 3},
        "container_oom_events_total": {(): 1},
        "container_memory_failures_total": {
            ("pgfault", "container"): 50,
            ("pgmajfault", "container"): 2,
            ("pgfault", "hierarchy"): 50,
            ("pgmajfault", "hierarchy"): 2,
        },
        "container_fs_usage_bytes": {("/dev/vda1",): 300},
        "container_fs_limit_bytes": {("/dev/vda1",): 1000},
        "container_fs_inodes_total": {("/dev/vda1",): 100},
        "container_fs_inodes_free": {("/dev/vda1",): 90},
        "container_fs_reads_total": {("/dev/vda",): 3, ("8:16",): 7},
        "container_fs_reads_bytes_total": {("/dev/vda",): 1, ("8:16",): 5},
        "container_fs_writes_total": {("/dev/vda",): 4, ("8:16",): 8},
        "container_fs_writes_bytes_total": {("/dev/vda",): 2, ("8:16",): 6},
        "container_blkio_device_usage_total": {
            ("/dev/vda", "254", "0", "Read"): 1,
            ("/dev/vda", "254", "0", "Write"): 2,
            ("8:16", "8", "16", "Read"): 5,
            ("8:16", "8", "16", "Write"): 6,
        },
        "container_network_receive_bytes_total": {("eth0",): 1},
        "container_network_receive_packets_total": {("eth0",): 2},
        "container_network_receive_errors_total": {("eth0",): 3},
        "container_network_receive_packets_dropped_total": {("eth0",): 4},
        "container_network_transmit_bytes_total": {("eth0",): 5},
        "container_network_transmit_packets_total": {("eth0",): 6},
        "container_network_transmit_errors_total": {("eth0",): 7},
        "container_network_transmit_packets_dropped_total": {("eth0",): 8},
        "container_processes": {(): 2},
        "container_threads": {(): 5},
        "container_threads_max": {(): 100},
        "container_file_descriptors": {(): 9},
        "container_sockets": {(): 1},
        "container_pressure_cpu_waiting_seconds_total": {(): 12},
        "container_pressure_cpu_stalled_seconds_total": {(): 3},
        "container_spec_cpu_period": {(): 1000},
        "container_spec_cpu_quota": {(): 500},
        "container_spec_memory_limit_bytes": {(): 0},
        "container_spec_memory_swap_limit_bytes": {(): 0},
        "container_spec_memory_reservation_limit_bytes": {(): 4096},
        "container_start_time_seconds": {(): 1_600_000_000},
        "container_last_seen": {(): 1_700_000_000},
    }  # fmt: skip


def test_a_quota_is_what_throttling_is_about() -> None:
    usage = Usage(timestamp=1, cpu=CpuUsage(periods=1, throttled_periods=1, throttled=1))
    for quota in (None, 0, -1):
        found = values(Subject(usage, 1, Resources(cpu_quota=quota)))
        assert not [name for name in found if "_cfs_" in name or name == "container_spec_cpu_quota"]
    assert values(Subject(Usage(timestamp=1), 1, Resources(cpu_quota=1)))[
        "container_cpu_cfs_periods_total"
    ] == {(): 0}


def test_the_labels_are_those_of_cadvisor() -> None:
    assert set(BASE_LABELS) == {"container", "id", "image", "name", "namespace", "pod"}
    extra = {metric.name: metric.extra_labels for metric in TABLE if metric.extra_labels}
    devices = [name for name in extra if name.startswith("container_fs_")]
    assert len(devices) == 8
    assert all(extra.pop(name) == ("device",) for name in devices)
    assert all(extra.pop(name) == ("interface",) for name in NETWORK)
    assert extra == {
        "container_cpu_usage_seconds_total": ("cpu",),
        "container_memory_failures_total": ("failure_type", "scope"),
        "container_blkio_device_usage_total": ("device", "major", "minor", "operation"),
    }
