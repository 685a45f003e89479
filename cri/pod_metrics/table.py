"""Every metric of containers and pods: its descriptor, and how it comes out of what is known of one.

Names, help, labels and meanings are those of cAdvisor (lib/metrics/prometheus.go), as dashboards and alerts expect them.

Values are whole numbers, since the CRI's Metric.value is a UInt64Value and the kubelet passes it on as it is
(pkg/kubelet/metrics/collectors/cri_metrics.go): what is called seconds is whole seconds, rounded down, where cAdvisor
has fractions; containerd and CRI-O do the same. Whoever wants it finer has the nanoseconds of ContainerStats.

What a kernel does not count is left out. But critest demands most of these of every container, on every system
(expectedMetricDescriptorNames in pkg/validate/pod.go of cri-tools 1.37): those are 0 then, and have `demanded` below.
A pod has no such zeros. Not here are the two of hugetlb, for which nobody counts, and container_ulimits_soft, as no
limit of processes is known to the CRI; critest takes all three for optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cri.pod_metrics.metric import SECOND, Filesystem, Kind, Metric, Subject, Value, limit, one, seconds
from cri.sandbox.spec import Resources
from cri.sandbox.usage import DeviceUsage, InterfaceUsage, Pressure, Usage

# -- of processors


def _has_quota(subject: Subject) -> bool:
    return subject.resources is None or (subject.resources.cpu_quota or 0) > 0


def _throttling(name: str, help_: str, value: Callable[[Usage], int | None]) -> Metric:
    """Of a quota, so only where there is one."""

    def values(subject: Subject) -> Iterable[Value]:
        if not _has_quota(subject):
            return ()
        found = value(subject.usage)
        if found is None and subject.resources is not None:
            found = 0  # demanded, and FreeBSD's racct does not count it
        return () if found is None else (((), found),)

    return Metric(name, help_, Kind.COUNTER, values)


_CPU = (
    Metric(
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        Kind.COUNTER,
        lambda subject: ((("total",), subject.usage.cpu.total // SECOND),),
        ("cpu",),
    ),
    one(
        "container_cpu_user_seconds_total",
        Kind.COUNTER,
        "Cumulative user cpu time consumed in seconds.",
        lambda subject: seconds(subject.usage.cpu.user),
        demanded=True,
    ),
    one(
        "container_cpu_system_seconds_total",
        Kind.COUNTER,
        "Cumulative system cpu time consumed in seconds.",
        lambda subject: seconds(subject.usage.cpu.system),
        demanded=True,
    ),
    _throttling(
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        lambda usage: usage.cpu.periods,
    ),
    _throttling(
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        lambda usage: usage.cpu.throttled_periods,
    ),
    _throttling(
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        lambda usage: seconds(usage.cpu.throttled),
    ),
)

# -- of memory


def _failures(subject: Subject) -> Iterable[Value]:
    """Page faults. What is inside of a container is counted as its own; a pod has only what is inside."""
    memory = subject.usage.memory
    scopes = ("hierarchy",) if subject.resources is None else ("container", "hierarchy")
    for scope in scopes:
        yield ("pgfault", scope), memory.page_faults
        yield ("pgmajfault", scope), memory.major_page_faults


_MEMORY = (
    one(
        "container_memory_usage_bytes",
        Kind.GAUGE,
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        lambda subject: subject.usage.memory.usage,
    ),
    one(
        "container_memory_working_set_bytes",
        Kind.GAUGE,
        "Current working set in bytes.",
        lambda subject: subject.usage.memory.working_set,
    ),
    one(
        "container_memory_rss",
        Kind.GAUGE,
        "Size of RSS in bytes.",
        lambda subject: subject.usage.memory.rss,
    ),
    one(
        "container_memory_cache",
        Kind.GAUGE,
        "Number of bytes of page cache memory.",
        lambda subject: subject.usage.memory.cache,
        demanded=True,
    ),
    one(
        "container_memory_mapped_file",
        Kind.GAUGE,
        "Size of memory mapped files in bytes.",
        lambda subject: subject.usage.memory.mapped_file,
        demanded=True,
    ),
    one(
        "container_memory_kernel_usage",
        Kind.GAUGE,
        "Size of kernel memory allocated in bytes.",
        lambda subject: subject.usage.memory.kernel,
        demanded=True,
    ),
    one(
        "container_memory_swap",
        Kind.GAUGE,
        "Container swap usage in bytes.",
        lambda subject: subject.usage.memory.swap,
        demanded=True,
    ),
    one(
        "container_memory_max_usage_bytes",
        Kind.GAUGE,
        "Maximum memory usage recorded in bytes",
        lambda subject: subject.usage.memory.peak,
        demanded=True,
    ),
    one(
        "container_memory_failcnt",
        Kind.COUNTER,
        "Number of memory usage hits limits",
        lambda subject: subject.usage.memory.limit_hits,
        demanded=True,
    ),
    one(
        "container_oom_events_total",
        Kind.COUNTER,
        "Count of out of memory events observed for the container",
        lambda subject: subject.usage.memory.oom_kills,
        demanded=True,
    ),
    Metric(
        "container_memory_failures_total",
        "Cumulative count of memory allocation failures.",
        Kind.COUNTER,
        _failures,
        ("failure_type", "scope"),
    ),
)

# -- of file systems and devices


def _filesystem(name: str, help_: str, value: Callable[[Subject, Filesystem], int | None]) -> Metric:
    """Of the file system that a container's writable layer is in."""

    def values(subject: Subject) -> Iterable[Value]:
        if subject.resources is None or (there := subject.filesystem) is None:
            return ()
        found = value(subject, there)
        return () if found is None else (((there.device,), found),)

    return Metric(name, help_, Kind.GAUGE, values, ("device",))


def _device(name: str, help_: str, value: Callable[[DeviceUsage], int]) -> Metric:
    return Metric(
        name,
        help_,
        Kind.COUNTER,
        lambda subject: [((_path(device),), value(device)) for device in subject.usage.io.devices],
        ("device",),
    )


def _path(device: DeviceUsage) -> str:
    """The device as cAdvisor has it: a path, or its numbers where that is not known."""
    return device.name if device.name[:1].isdecimal() or not device.name else f"/dev/{device.name}"


def _blkio(subject: Subject) -> Iterable[Value]:
    for device in subject.usage.io.devices:
        which = (_path(device), str(device.major), str(device.minor))
        yield (*which, "Read"), device.read_bytes
        yield (*which, "Write"), device.written_bytes


_DISK = (
    _filesystem(
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        lambda subject, _: None if subject.disk is None else subject.disk.bytes,
    ),
    _filesystem(
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        lambda _, there: there.size,
    ),
    _filesystem("container_fs_inodes_total", "Number of Inodes", lambda _, there: there.inodes),
    _filesystem("container_fs_inodes_free", "Number of available Inodes", lambda _, there: there.free_inodes),
    _device("container_fs_reads_total", "Cumulative count of reads completed", lambda device: device.reads),
    _device(
        "container_fs_reads_bytes_total", "Cumulative count of bytes read", lambda device: device.read_bytes
    ),
    _device(
        "container_fs_writes_total", "Cumulative count of writes completed", lambda device: device.writes
    ),
    _device(
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written",
        lambda device: device.written_bytes,
    ),
    Metric(
        "container_blkio_device_usage_total",
        "Blkio Device bytes usage",
        Kind.COUNTER,
        _blkio,
        ("device", "major", "minor", "operation"),
    ),
)

# -- of the network: a pod's, as its containers share it


def _interface(name: str, help_: str, value: Callable[[InterfaceUsage], int]) -> Metric:
    return Metric(
        f"container_network_{name}_total",
        f"Cumulative count of {help_}",
        Kind.COUNTER,
        lambda subject: [((one.name,), value(one)) for one in subject.usage.interfaces],
        ("interface",),
    )


_NETWORK = (
    _interface("receive_bytes", "bytes received", lambda one: one.received_bytes),
    _interface("receive_packets", "packets received", lambda one: one.received_packets),
    _interface("receive_packets_dropped", "packets dropped while receiving", lambda one: one.receive_drops),
    _interface("receive_errors", "errors encountered while receiving", lambda one: one.receive_errors),
    _interface("transmit_bytes", "bytes transmitted", lambda one: one.sent_bytes),
    _interface("transmit_packets", "packets transmitted", lambda one: one.sent_packets),
    _interface("transmit_packets_dropped", "packets dropped while transmitting", lambda one: one.send_drops),
    _interface("transmit_errors", "errors encountered while transmitting", lambda one: one.send_errors),
)

# -- of processes

_PROCESSES = (
    one(
        "container_processes",
        Kind.GAUGE,
        "Number of processes running inside the container.",
        lambda subject: subject.usage.processes.processes,
    ),
    one(
        "container_threads",
        Kind.GAUGE,
        "Number of threads running inside the container",
        lambda subject: subject.usage.processes.threads,
        demanded=True,
    ),
    one(
        "container_threads_max",
        Kind.GAUGE,
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        lambda subject: subject.usage.processes.threads_limit or 0,
    ),
    one(
        "container_file_descriptors",
        Kind.GAUGE,
        "Number of open file descriptors for the container.",
        lambda subject: subject.usage.processes.descriptors,
        demanded=True,
    ),
    one(
        "container_sockets",
        Kind.GAUGE,
        "Number of open sockets for the container.",
        lambda subject: subject.usage.processes.sockets,
        demanded=True,
    ),
)

# -- of what was waited for


def _pressure(of: str, help_: str, found: Callable[[Usage], Pressure | None]) -> tuple[Metric, Metric]:
    def total(usage: Usage, *, all_tasks: bool) -> int | None:
        if (pressure := found(usage)) is None:
            return None
        return seconds((pressure.full if all_tasks else pressure.some).total)

    return (
        one(
            f"container_pressure_{of}_stalled_seconds_total",
            Kind.COUNTER,
            f"Total time duration no tasks in the container could make progress due to {help_} congestion.",
            lambda subject: total(subject.usage, all_tasks=True),
        ),
        one(
            f"container_pressure_{of}_waiting_seconds_total",
            Kind.COUNTER,
            f"Total time duration tasks in the container have waited due to {help_} congestion.",
            lambda subject: total(subject.usage, all_tasks=False),
        ),
    )


_PRESSURE = (
    *_pressure("cpu", "CPU", lambda usage: usage.cpu.pressure),
    *_pressure("memory", "memory", lambda usage: usage.memory.pressure),
    *_pressure("io", "IO", lambda usage: usage.io.pressure),
)

# -- of what a container was given


def _spec(name: str, help_: str, value: Callable[[Resources], int | None]) -> Metric:
    return one(
        f"container_spec_{name}",
        Kind.GAUGE,
        help_,
        lambda subject: None if subject.resources is None else value(subject.resources),
        live=True,
    )


def _positive(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None


def _reservation(resources: Resources) -> int:
    least = resources.unified.get("memory.min", "")
    return limit(int(least)) if least.isascii() and least.isdecimal() and len(least) < 20 else 0


_SPEC = (
    _spec("cpu_period", "CPU period of the container.", lambda given: _positive(given.cpu_period)),
    _spec("cpu_quota", "CPU quota of the container.", lambda given: _positive(given.cpu_quota)),
    _spec("cpu_shares", "CPU share of the container.", lambda given: _positive(given.cpu_shares)),
    _spec("memory_limit_bytes", "Memory limit for the container.", lambda given: limit(given.memory_limit)),
    _spec(
        "memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        lambda given: limit(given.memory_swap_limit),
    ),
    _spec("memory_reservation_limit_bytes", "Memory reservation limit for the container.", _reservation),
    one(
        "container_start_time_seconds",
        Kind.GAUGE,
        "Start time of the container since unix epoch in seconds.",
        lambda subject: subject.started_at // SECOND,
        live=True,
    ),
    one(
        "container_last_seen",
        Kind.GAUGE,
        "Last time a container was seen by the exporter",
        lambda subject: subject.usage.timestamp // SECOND,
    ),
)

TABLE: Sequence[Metric] = (*_CPU, *_MEMORY, *_DISK, *_NETWORK, *_PROCESSES, *_PRESSURE, *_SPEC)
