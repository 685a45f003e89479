"""Limits of containers as rules of rctl(8) and as a CPU set.

| CRI (LinuxContainerResources)   | FreeBSD                                   | remark |
|---------------------------------|-------------------------------------------|--------|
| memory_limit_in_bytes           | memoryuse:sigkill                         | resident memory, which racct looks at once a second |
|                                 | swapuse:deny, `most_reserved`             | the backstop for what allocates faster than that |
| memory_swap_limit_in_bytes      | moves the backstop; -1: there is none     | what a jail has in swap, FreeBSD does not count |
| cpu_quota / cpu_period          | pcpu:deny                                 | per cent of one CPU, rounded up; throttles |
| cpu_shares                      | none                                      | FreeBSD has no weights between jails |
| cpuset_cpus                     | cpuset(2) of the jail                     | |
| cpuset_mems                     | none                                      | domains are a policy of a process, not a limit of a jail |
| unified["pids.max"]             | maxproc:deny                              | other keys of cgroup v2 have no counterpart: refused |
| oom_score_adj, hugepage_limits  | none                                      | |

What a program reserves and what it uses are far apart. vmemoryuse counts all of its address space: V8, the JVM and Go set aside
gigabytes that they never touch (crictl, which is Go: 1.2 GB, 90 MB of them reserved, 20 MB used), so nothing is limited by it.
swapuse has nothing to do with swap: it counts what could have to go there one day, that is private memory that may be written,
touched or not, and shared memory; not what is only set aside (PROT_NONE), nor files. It is checked at once, so it bounds what may
happen within racct's second; but a fork doubles it, Go takes 64 MiB at a time, and at 0 no program starts. So the backstop is far
above the limit, and a memory_swap_limit_in_bytes that equals the memory limit (the kubelet's "no swap") moves it nowhere. racct
lets go of too much when a process ends that had given something back, so the figure can be too low, never too high.

racct adds a jail's use to that of every jail above it, so a pod's figures are those of its own jail.
Without kern.racct.enable=1 in loader.conf(5) nothing is limited but CPUs.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass

from cri.sandbox import wire
from cri.sandbox.freebsd.calls import Calls
from cri.sandbox.host import HalfUpdatedError, HostError, refused_limit
from cri.sandbox.spec import Resources

RESERVED_ROOM = 1 << 30
"""Bytes that a container may reserve beyond twice its limit: of a runtime that takes memory in large pieces, touched or not."""
_MOST = (1 << 63) - 1
"""The largest amount of a rule."""
_PERIOD = 100_000
"""Microseconds: cpu_period where none is given."""
_DIGITS = 19
"""More than any number of processes has."""
_DISABLED = "kern.racct.enable is 0: limits are not enforced; set it to 1 in /boot/loader.conf and reboot"


def subject(jail: str) -> str:
    """A jail as rctl(8) writes it."""
    return f"jail:{jail}:"


def rules(jail: str, resources: Resources) -> list[str]:
    """The rules for a jail. Raises HostError for a value that makes no sense."""
    found: list[str] = []

    def limit(rule: str, amount: int) -> None:
        found.append(f"{subject(jail)}{rule}={amount}")

    memory, together = max(resources.memory_limit or 0, 0), max(resources.memory_swap_limit or 0, 0)
    if together and (together < memory or not memory):
        subject_ = f"memory_limit_in_bytes {memory or 'none'}"
        reason = f"memory and swap together have {together}: set memory_swap_limit_in_bytes to no less"
        raise HostError("use", subject_, reason, errno.EINVAL)
    if memory:
        limit("memoryuse:sigkill", memory)
        if (resources.memory_swap_limit or 0) >= 0:
            limit("swapuse:deny", most_reserved(memory, together))
    if resources.cpu_quota is not None and resources.cpu_quota > 0:
        limit("pcpu:deny", max(1, -(-resources.cpu_quota * 100 // (resources.cpu_period or _PERIOD))))
    pids = _pids(resources.unified)
    pids = resources.pids_limit if resources.pids_limit is not None else pids
    if pids is not None and pids > 0:
        limit("maxproc:deny", pids)
    return found


def most_reserved(memory: int, together: int) -> int:
    """Bytes that a container may reserve, given its limits of memory and of memory and swap together (0: none given).

    Twice the larger one, so that a program that has used up all of it may fork, and `RESERVED_ROOM`.
    """
    return min(2 * max(memory, together) + RESERVED_ROOM, _MOST)


def limits_of(rules: list[str]) -> Resources:
    """What rules of a jail amount to, the least of each kind; -1 where there is none.

    A memory_swap_limit that is the memory limit shows nowhere, and is None, as one that was not given.
    """
    least: dict[str, int] = {}
    for rule in rules:
        kind, _, amount = rule.rpartition("=")
        name = kind.split(":")[2] if kind.count(":") > 2 else ""
        if amount.isdecimal():
            least[name] = min(int(amount), least.get(name, int(amount)))
    memory, reserved, cpu = (least.get(name, -1) for name in ("memoryuse", "swapuse", "pcpu"))
    larger = (reserved - RESERVED_ROOM) // 2
    together = -1 if memory < 0 or reserved < 0 else larger if larger > memory else None
    return Resources(
        memory_limit=memory,
        memory_swap_limit=together,
        cpu_period=_PERIOD,
        cpu_quota=cpu * _PERIOD // 100 if cpu >= 0 else -1,
        unified={"pids.max": str(least.get("maxproc", "max"))},
    )


def parse_cpus(text: str) -> set[int]:
    """The CPUs in a list such as `0-3,7`. Raises HostError."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 4 or len(last) > 4:
            raise HostError("use", f"cpuset_cpus {text!r}", "write numbers and ranges: 0-3,7", errno.EINVAL)
        cpus |= set(range(int(first), int(last if dash else first) + 1))
    return cpus


@dataclass(slots=True)
class Limits:
    """Sets limits. Every method blocks."""

    calls: Calls

    def apply(self, jail: str, jid: int, resources: Resources, *, must: bool = False) -> None:
        """Make a jail's limits those of `resources`, all of them or none: new ones first, so that it is never without.

        Without racct there are none, which the node's condition tells; `must` makes that an error. Raises HostError with what
        is refused, once the rest is put back; HalfUpdatedError if that cannot be.
        """
        try:
            self._apply(jail, jid, resources, must=must)
        except HostError as error:
            raise refused_limit(error) from error

    def _apply(self, jail: str, jid: int, resources: Resources, *, must: bool) -> None:
        wanted = rules(jail, resources)
        if must:
            self._check_in_use(jail, resources)
        cpus = parse_cpus(resources.cpuset_cpus) if resources.cpuset_cpus else None
        before = None if cpus is None else self._set_cpus(jid, resources.cpuset_cpus or "", cpus)
        try:
            self._set_rules(jail, wanted, must=must)
        except HostError as error:
            if before is not None:
                self._put_cpus_back(jid, before, resources, error)
            raise

    def _check_in_use(self, jail: str, resources: Resources) -> None:
        """A rule that a jail exceeds already has all its processes killed within a second."""
        limit = max(resources.memory_limit or 0, 0)
        try:
            used = self.calls.rctl_usage(subject(jail)).get("memoryuse", 0) if limit else 0
            if used <= limit:
                return
            has = limits_of(self.calls.rctl_rules(subject(jail))).memory_limit
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return  # which is told by who sets the rules
            raise _limit_error(jail, error) from error
        if has != limit:
            raise HostError(
                "limit",
                f"jail {jail}",
                f"memory_limit_in_bytes {limit}: {used} bytes are in use",
                errno.EBUSY,
            )

    def remove(self, jail: str) -> None:
        """Remove the rules of a jail; they would outlive it."""
        try:
            self.calls.rctl_remove(subject(jail))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise HostError(
                    "remove limits of", f"jail {jail}", error.strerror or str(error), error.errno
                ) from error

    def subjects(self) -> set[str]:
        """The jails that have rules."""
        try:
            found = self.calls.rctl_rules("jail:")
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return set()
            raise HostError("read", "rctl rules", error.strerror or str(error), error.errno) from error
        return {rule.split(":")[1] for rule in found}

    def _set_cpus(self, jid: int, text: str, cpus: set[int]) -> set[int]:
        """Let a jail run on these; on which it ran before."""
        try:
            before = self.calls.jail_cpus_now(jid)
            if before != cpus:
                self.calls.jail_cpus(jid, cpus)
        except OSError as error:
            raise HostError(
                "use", f"cpuset_cpus {text}", error.strerror or str(error), error.errno
            ) from error
        return before

    def _put_cpus_back(self, jid: int, before: set[int], resources: Resources, error: HostError) -> None:
        try:
            self.calls.jail_cpus(jid, before)
        except OSError as second:
            changed = Resources(cpuset_cpus=resources.cpuset_cpus)
            if isinstance(error, HalfUpdatedError):
                changed = wire.merged(error.changed, changed)
            raise _half_updated(error, f"cpuset_cpus: {second.strerror}", changed) from error

    def _set_rules(self, jail: str, wanted: list[str], *, must: bool) -> None:
        try:
            present = self.calls.rctl_rules(subject(jail))
        except OSError as error:
            if error.errno == errno.ENOSYS and not (must and wanted):
                return
            raise _limit_error(jail, error) from error
        try:
            self._replace(present, wanted)
        except OSError as error:
            failure = _limit_error(jail, error)
            self._put_rules_back(jail, present, wanted, failure)
            raise failure from error

    def _replace(self, present: list[str], wanted: list[str]) -> None:
        for rule in wanted:
            if rule not in present:
                self.calls.rctl_add(rule)
        for rule in present:
            if rule not in wanted:
                self.calls.rctl_remove(rule)

    def _put_rules_back(self, jail: str, before: list[str], tried: list[str], error: HostError) -> None:
        now = [*before, *tried]
        try:
            now = self.calls.rctl_rules(subject(jail))
            self._replace(now, before)
        except OSError as second:
            with contextlib.suppress(OSError):  # then what may be there must do
                now = self.calls.rctl_rules(subject(jail))
            raise _half_updated(error, f"rules: {second.strerror}", limits_of(now)) from error


def _limit_error(jail: str, error: OSError) -> HostError:
    reason = _DISABLED if error.errno == errno.ENOSYS else error.strerror or str(error)
    return HostError("limit", f"jail {jail}", reason, error.errno)


def _half_updated(error: HostError, reason: str, changed: Resources) -> HalfUpdatedError:
    reason = f"{error.reason}; and what had been changed before stays, as it cannot be put back: {reason}"
    return HalfUpdatedError(error.operation, error.subject, reason, error.errno, changed=changed)


def _pids(unified: dict[str, str]) -> int | None:
    text = unified.get("pids.max", "max")
    if text != "max" and not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
        raise HostError("use", f"unified pids.max {text!r:.40}", "a number or max was expected", errno.EINVAL)
    if others := sorted(unified.keys() - {"pids.max"}):
        reason = "this system has nothing like it; leave it out"
        raise HostError("use", f"unified {', '.join(others)}", reason, errno.EINVAL)
    return None if text == "max" else int(text)
