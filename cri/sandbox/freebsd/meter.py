"""What jails use: of racct(8) if it is enabled, and of the processes that live in them.

| figure                    | with kern.racct.enable=1                  | without                |
|---------------------------|-------------------------------------------|------------------------|
| processor time            | the more of `cputime`, in whole seconds, and of what living processes have | the latter |
| user and system           | of living processes, and of those they have waited for | the same  |
| memory                    | `memoryuse`, which is looked at once a second | resident pages     |
| page faults               | of living processes                       | the same               |
| processes, threads        | `maxproc`, `nthr`                         | counted                |
| descriptors               | `openfiles`                               | none                   |
| swap                      | none: `swapuse` is what is reserved       | none                   |
| io                        | none: `readbps` and the like are rates    | none                   |

racct adds a jail's use to that of every jail above it, so a pod's figures are those of its own jail, which keeps what containers
have used that are gone. Without racct they are the sum of its containers.

An interface of a pod is one end of an epair(4); what the other end on the node has sent, it has received.
"""

from __future__ import annotations

import errno
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cri.sandbox.freebsd import jails
from cri.sandbox.freebsd.calls import Calls, Process
from cri.sandbox.freebsd.limits import subject
from cri.sandbox.host import HostError, Measured
from cri.sandbox.usage import CpuUsage, InterfaceUsage, MemoryUsage, ProcessUsage, Usage


@dataclass(frozen=True, slots=True)
class Counters:
    """What does not go back. Microseconds, but for the faults."""

    cpu: int = 0
    user: int = 0
    system: int = 0
    minor_faults: int = 0
    major_faults: int = 0


@dataclass(slots=True)
class Meter:
    """Reads usage. Every method blocks."""

    calls: Calls
    _most: dict[str, Counters] = field(default_factory=dict)
    """The most that was read of each jail: what processes have had that are gone was used all the same."""

    def usages(self, pods: Sequence[Measured]) -> dict[str, Usage | HostError]:
        """See `Host.usages`."""
        try:
            return self._usages(pods)
        except OSError as error:
            failure = HostError("measure", "the node's jails", error.strerror or str(error), error.errno)
            return {one: failure for pod in pods for one in _ids(pod)}

    def forget(self, jail: str) -> None:
        """A jail is gone."""
        self._most.pop(jail, None)

    def _usages(self, pods: Sequence[Measured]) -> dict[str, Usage | HostError]:
        jids = {name: self._jid(name) for pod in pods for name in _names(pod)}
        living: dict[int, list[Process]] = defaultdict(list)
        for process in self.calls.processes([jid for jid in jids.values() if jid is not None]):
            living[process.jid].append(process)
        ends = (
            {one.name: one for one in self.calls.interfaces()} if any(pod.interfaces for pod in pods) else {}
        )
        found: dict[str, Usage | HostError] = {}
        for pod in pods:
            inside: list[Process] = []
            for container in pod.containers:
                name, limit = jails.container_name(container), container.resources.memory_limit
                if (jid := jids[name]) is None:
                    found[container.id] = _gone(f"container {container.id}")
                    continue
                inside += living[jid]
                found[container.id] = self._usage(name, living[jid], limit)
            if pod.itself:
                name, interfaces = jails.pod_name(pod.sandbox.id), _swapped(pod.interfaces, ends)
                found[pod.sandbox.id] = (
                    _gone(f"sandbox {pod.sandbox.id}")
                    if jids[name] is None
                    else self._usage(name, inside, None, interfaces)
                )
        return found

    def _jid(self, name: str) -> int | None:
        jail = self.calls.jail_find(name)
        return None if jail is None else jail.jid

    def _usage(
        self,
        jail: str,
        living: Sequence[Process],
        limit: int | None,
        interfaces: tuple[InterfaceUsage, ...] = (),
    ) -> Usage | HostError:
        try:
            used = self.calls.rctl_usage(subject(jail))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                return HostError("measure", f"jail {jail}", error.strerror or str(error), error.errno)
            used = {}
        timestamp = time.time_ns()
        memory = used.get("memoryuse", sum(process.resident for process in living))
        counters = self._counters(jail, living, used.get("cputime", 0))
        return Usage(
            timestamp=timestamp,
            cpu=CpuUsage(counters.cpu * 1000, counters.user * 1000, counters.system * 1000),
            memory=MemoryUsage(
                usage=memory,
                working_set=memory,
                rss=memory,
                available=max(limit - memory, 0) if limit else None,
                limit=limit or None,
                page_faults=counters.minor_faults,
                major_page_faults=counters.major_faults,
            ),
            processes=ProcessUsage(
                processes=used.get("maxproc", len(living)),
                threads=used.get("nthr", sum(process.threads for process in living)),
                descriptors=used.get("openfiles"),
            ),
            interfaces=interfaces,
        )

    def _counters(self, jail: str, living: Sequence[Process], seconds: int) -> Counters:
        before = self._most.get(jail, Counters())
        cpu = sum(process.cpu_microseconds for process in living)
        system = sum(process.system_microseconds for process in living)
        now = self._most[jail] = Counters(
            max(cpu, seconds * 1_000_000, before.cpu),
            max(cpu - system, before.user),
            max(system, before.system),
            max(sum(process.minor_faults for process in living), before.minor_faults),
            max(sum(process.major_faults for process in living), before.major_faults),
        )
        return now


def _ids(pod: Measured) -> Iterable[str]:
    yield from (container.id for container in pod.containers)
    if pod.itself:
        yield pod.sandbox.id


def _names(pod: Measured) -> Iterable[str]:
    yield from map(jails.container_name, pod.containers)
    if pod.itself:
        yield jails.pod_name(pod.sandbox.id)


def _gone(subject: str) -> HostError:
    return HostError("find the jail of", subject, "it has ended", errno.ENOENT)


def _swapped(known: Mapping[str, str], ends: Mapping[str, InterfaceUsage]) -> tuple[InterfaceUsage, ...]:
    """The pod's interfaces, of their other ends; the first one that was made is the default one."""
    return tuple(
        InterfaceUsage(
            name,
            far.sent_bytes,
            far.sent_packets,
            far.send_errors,
            far.send_drops,
            far.received_bytes,
            far.received_packets,
            far.receive_errors,
            far.receive_drops,
        )
        for end, name in known.items()
        if (far := ends.get(end)) is not None
    )
