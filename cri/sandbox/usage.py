"""What containers and pods have used so far, in the words of no kernel.

Counters count from the start of what they are about. None is what a kernel does not count, never what is nothing: the
CRI's messages and cAdvisor's metrics leave such figures out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stall:
    """How long tasks waited for a resource (PSI, the kernel's Documentation/accounting/psi.rst)."""

    total: int
    """Nanoseconds."""
    avg10: float
    """Percent of the last 10, 60 and 300 seconds."""
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """What some, and what all tasks of a group waited for one resource."""

    some: Stall
    full: Stall


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """Processor time."""

    total: int = 0
    """Nanoseconds, of all processors together."""
    user: int | None = None
    system: int | None = None
    periods: int | None = None
    """Periods of the quota that have passed, in which it was used up, and the nanoseconds lost to that."""
    throttled_periods: int | None = None
    throttled: int | None = None
    pressure: Pressure | None = None


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Memory; bytes, but for the counts."""

    usage: int = 0
    """With the page cache."""
    working_set: int = 0
    """What cannot be reclaimed at once; what eviction looks at."""
    rss: int = 0
    """Anonymous memory."""
    available: int | None = None
    """What is left under the limit; None where there is no limit."""
    limit: int | None = None
    cache: int | None = None
    mapped_file: int | None = None
    kernel: int | None = None
    peak: int | None = None
    """The most that `usage` has been."""
    limit_hits: int | None = None
    """How often the limit was in the way."""
    oom_kills: int | None = None
    page_faults: int = 0
    """Without the major ones."""
    major_page_faults: int = 0
    swap: int | None = None
    swap_available: int | None = None
    swap_limit: int | None = None
    pressure: Pressure | None = None


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What was read from and written to one block device."""

    name: str
    """As below /dev, e.g. `vda`; major:minor where that is not known."""
    major: int
    minor: int
    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class IoUsage:
    """Input and output of block devices."""

    devices: tuple[DeviceUsage, ...] = ()
    pressure: Pressure | None = None


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Processes and what they hold."""

    processes: int = 0
    threads: int | None = None
    threads_limit: int | None = None
    """None where there is no limit."""
    descriptors: int | None = None
    sockets: int | None = None


@dataclass(frozen=True, slots=True)
class InterfaceUsage:
    """One network interface, seen from inside of the pod."""

    name: str
    received_bytes: int = 0
    received_packets: int = 0
    receive_errors: int = 0
    receive_drops: int = 0
    sent_bytes: int = 0
    sent_packets: int = 0
    send_errors: int = 0
    send_drops: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container or a pod has used, at one moment."""

    timestamp: int
    """Nanoseconds since the epoch."""
    cpu: CpuUsage = CpuUsage()
    memory: MemoryUsage = MemoryUsage()
    io: IoUsage = IoUsage()
    processes: ProcessUsage = ProcessUsage()
    interfaces: tuple[InterfaceUsage, ...] = ()
    """Of a pod that has a network of its own; the default one first, without the loopback interface."""
