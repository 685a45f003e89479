"""Limits as values for files of a cgroup, in an order that the kernel takes, set as a whole or put back.

Version 1 checks every write against what the group, its parent and its children have at that moment: sched_setup of
cpu.cfs_* (Documentation/scheduler/sched-bwc.rst), cgroup-v1/memory.rst and cgroup-v1/cpusets.rst. Version 2 takes nearly
everything, and what is in force is the least of what a group and those above it have (cgroup-v2.rst).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from cri.sandbox import wire
from cri.sandbox.host import HalfUpdatedError, HostError
from cri.sandbox.linux import cgroup_files, cgroup_tree
from cri.sandbox.spec import Resources

DEFAULT_PERIOD = 100_000
"""Microseconds: cpu.cfs_period_us of a new group."""
_UNLIMITED = 1 << 63
_MOST_PAGES = 1 << 62
"""Without a limit, version 1 shows the largest number of pages there is."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a file."""

    path: str
    value: str
    part: Resources
    """What of the limits that is."""
    gone: tuple[int, ...] = ()
    """Errors that mean that there is nothing to be limited any more."""
    shown: bool = False
    """It is in the container's own group, for its programs to read: whether the kernel takes it there does not matter."""


@dataclass(slots=True)
class Changes:
    """What has been written, so that it can be put back."""

    _before: list[tuple[Setting, str | None]] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def write(self, setting: Setting) -> None:
        """Write a value, unless it is there already. Raises HostError."""
        try:
            before = _before(setting.path)
            if before != setting.value:
                cgroup_files.write(setting.path, setting.value)
                self._before.append((setting, before))
        except HostError as error:
            if error.errno not in setting.gone and not setting.shown:
                raise

    def then(self, undo: Callable[[], None]) -> None:
        """Something to do once the values are what they were, after what was named before."""
        self._undo.append(undo)

    def put_back(self, error: HostError) -> HostError:
        """Write the old values, the newest change first: then each step leads to what the kernel has taken before.

        Returns what the caller is to raise for `error`: a HalfUpdatedError, if something could not be put back.
        """
        changed, reasons = Resources(), []
        for setting, before in reversed(self._before):
            if (reason := _put_back(setting, before)) is not None:
                changed = wire.merged(changed, setting.part)
                reasons.append(reason)
        for undo in self._undo:
            undo()
        if not reasons:
            return error
        reason = f"{error.reason}; and what had been changed before stays, as it cannot be put back: {'; '.join(reasons)}"
        return HalfUpdatedError(error.operation, error.subject, reason, error.errno, changed=changed)


_MEANS: dict[tuple[str, int], str] = {
    ("memory.limit_in_bytes", errno.EBUSY): "more is in use than can be reclaimed",
    ("memory.memsw.limit_in_bytes", errno.EBUSY): "more is in use than can be reclaimed",
    ("cpu.cfs_quota_us", errno.EINVAL): "less than 1 ms, or a larger share than the group above has, or a smaller one than a group "
    "below: a pod's limit is raised before those of its containers, and lowered after them",
    ("cpuset.cpus", errno.EBUSY): "a group below has others: a pod's set is narrowed after those of its containers",
    ("cpuset.cpus", errno.EACCES): "the group above has not all of them: a pod's set is widened before those of its containers",
}  # fmt: skip


def explained(error: HostError) -> HostError:
    """The kernel's refusal, with what it means at that file of version 1."""
    means = _MEANS.get((error.subject.rpartition("/")[2], error.errno or 0))
    if means is None or type(error) is not HostError:
        return error
    return HostError(error.operation, error.subject, f"{error.reason} ({means})", error.errno)


def make_way_v1(directories: Mapping[str, str], given: Resources) -> Iterator[Setting]:
    """What stands in the way of new limits in the groups below, which must not have more than those above. Raises HostError.

    What a container has set of its own there, is lost.
    """
    gone = (errno.ENOENT, errno.ENODEV)
    if (given.cpu_quota or given.cpu_period) and (cpu := directories.get("cpu")) is not None:
        for path in cgroup_tree.paths(cpu):
            part = Resources(cpu_quota=given.cpu_quota)
            yield Setting(f"{path}/cpu.cfs_quota_us", "-1", part, gone)
    for name, (value, part) in _cpuset(given).items():
        below = cgroup_tree.paths(_directory(directories, "cpuset", name))
        # First what they have and what they will have, from above; then, from below, only what they will have.
        for path in (directories["cpuset"], *reversed(below)):
            both = f"{_before(f'{path}/{name}') or value},{value}"
            yield Setting(f"{path}/{name}", both, part, gone)
        for path in below:
            yield Setting(f"{path}/{name}", value, part, gone)


def settings_v1(directories: Mapping[str, str], given: Resources) -> Iterator[Setting]:
    """For a group in several hierarchies, by controller. Raises HostError for what it cannot have.

    What the kernel may refuse for what is running comes last. The generator looks at what is, so that each value must be
    written before the next is asked for.
    """
    if given.unified:
        names = ", ".join(sorted(given.unified))
        raise HostError(
            "set",
            f"unified {names}",
            "this node has cgroups of version 1; use the other fields",
            errno.EINVAL,
        )
    for name, (value, part) in _cpuset(given).items():
        where = _directory(directories, "cpuset", name)
        yield Setting(f"{where}/{name}", value, part)
    for size, limit in given.hugepage_limits.items():
        if "hugetlb" in directories or limit:
            where = _directory(directories, "hugetlb", f"hugetlb.{size}")
            part = Resources(hugepage_limits={size: limit})
            yield Setting(f"{where}/hugetlb.{size}.limit_in_bytes", str(limit), part)
    if (cpu := directories.get("cpu")) is not None:
        if given.cpu_shares:
            yield Setting(f"{cpu}/cpu.shares", str(given.cpu_shares), Resources(cpu_shares=given.cpu_shares))
        yield from _bandwidth_v1(cpu, given)
    if given.pids_limit and (pids := directories.get("pids")) is not None:
        yield Setting(f"{pids}/pids.max", _maximum(given.pids_limit), Resources(pids_limit=given.pids_limit))
    if (memory := directories.get("memory")) is not None:
        yield from _memory_v1(memory, given)


def settings_v2(directory: str, given: Resources, whole: Resources) -> Iterator[Setting]:
    """For a group in the one hierarchy. `whole` is what all limits will be: some files stand for two of them."""
    found = _cpuset(given)
    for size, limit in given.hugepage_limits.items():
        found[f"hugetlb.{size}.max"] = str(limit), Resources(hugepage_limits={size: limit})
    if given.cpu_shares:
        # The kernel's own range, 2..262144 to 1..10000 (KEP-2254).
        weight = 1 + (min(max(given.cpu_shares, 2), 262_144) - 2) * 9999 // 262_142
        found["cpu.weight"] = str(weight), Resources(cpu_shares=given.cpu_shares)
    if given.cpu_quota or given.cpu_period:
        quota = _maximum(whole.cpu_quota) if whole.cpu_quota else "max"
        part = Resources(cpu_quota=given.cpu_quota, cpu_period=given.cpu_period)
        found["cpu.max"] = f"{quota} {whole.cpu_period or DEFAULT_PERIOD}", part
    if given.pids_limit:
        found["pids.max"] = _maximum(given.pids_limit), Resources(pids_limit=given.pids_limit)
    found |= _memory_v2(given, whole)
    for name, value in given.unified.items():
        if "/" in name or name.startswith("cgroup.") or "." not in name:
            raise HostError(
                "set", f"cgroup setting {name}", "the name of a controller's file was expected", errno.EINVAL
            )
        found[name] = value, Resources(unified={name: value})
    if given.memory_limit and given.memory_limit > 0:
        _check_in_use(directory, given.memory_limit)
    for name, (value, part) in sorted(found.items(), key=lambda item: item[0].startswith("memory.")):
        # What was given by name or concerns few nodes' containers is refused if it is not there; if one of the others is
        # not, its controller is missing, which the node's condition tells.
        needed = (
            name in given.unified
            or name.startswith("cpuset.")
            or (name.startswith("hugetlb.") and value != "0")
        )
        if needed or _before(f"{directory}/{name}") is not None:
            yield Setting(f"{directory}/{name}", value, part)


def _cpuset(given: Resources) -> dict[str, tuple[str, Resources]]:
    found = {}
    if given.cpuset_cpus:
        found["cpuset.cpus"] = given.cpuset_cpus, Resources(cpuset_cpus=given.cpuset_cpus)
    if given.cpuset_mems:
        found["cpuset.mems"] = given.cpuset_mems, Resources(cpuset_mems=given.cpuset_mems)
    return found


def _bandwidth_v1(directory: str, given: Resources) -> Iterator[Setting]:
    period_file, quota_file = f"{directory}/cpu.cfs_period_us", f"{directory}/cpu.cfs_quota_us"
    settings = []
    if given.cpu_period:
        settings.append(Setting(period_file, str(given.cpu_period), Resources(cpu_period=given.cpu_period)))
    if given.cpu_quota:
        quota = str(max(given.cpu_quota, -1))
        settings.append(Setting(quota_file, quota, Resources(cpu_quota=given.cpu_quota)))
    # A share must never exceed the parent's, not even between the two writes. A longer period first makes it smaller than
    # it is; before a shorter one, the new quota makes it smaller than it will be.
    if given.cpu_period and given.cpu_period < (cgroup_files.number(period_file) or 0):
        settings.reverse()
    yield from settings


def _memory_v1(directory: str, given: Resources) -> Iterator[Setting]:
    limit_file, swap_file = f"{directory}/memory.limit_in_bytes", f"{directory}/memory.memsw.limit_in_bytes"
    together = cgroup_files.number(swap_file)  # absent without swap accounting
    limit, swap = given.memory_limit, given.memory_swap_limit
    if limit is not None and limit < 0 and not swap:
        swap = -1  # without a limit of memory, one of memory and swap would be the limit of memory
    swap = None if together is None else swap
    settings = []
    if limit:
        settings.append(Setting(limit_file, str(max(limit, -1)), Resources(memory_limit=limit)))
    if swap:
        settings.append(Setting(swap_file, str(max(swap, -1)), Resources(memory_swap_limit=swap)))
    if together is not None and (limit or swap):
        _check_memory(
            _or_unlimited(limit) if limit else cgroup_files.number(limit_file) or 0,
            _or_unlimited(swap) if swap else together,
            directory,
        )
        # Memory must never exceed memory and swap together.
        if swap and _or_unlimited(swap) > together:
            settings.reverse()
    yield from settings


def _memory_v2(given: Resources, whole: Resources) -> dict[str, tuple[str, Resources]]:
    """Swap before memory, as less memory may need it."""
    found: dict[str, tuple[str, Resources]] = {}
    limit, swap = whole.memory_limit, whole.memory_swap_limit
    if limit and limit < 0 and not given.memory_swap_limit:
        swap = -1 if swap else None
    if swap and (given.memory_limit or given.memory_swap_limit):
        _check_memory(_or_unlimited(limit or 0), _or_unlimited(swap), "")
        part = Resources(memory_swap_limit=given.memory_swap_limit)
        if swap > 0 and (limit is None or limit <= 0):
            reason = "a limit of memory and swap needs one of memory: set memory_limit_in_bytes too"
            raise HostError("set", "memory_swap_limit_in_bytes", reason, errno.EINVAL)
        found["memory.swap.max"] = ("max" if swap < 0 or limit is None else str(swap - limit)), part
    if given.memory_limit:
        part = Resources(memory_limit=given.memory_limit)
        found["memory.max"] = _maximum(given.memory_limit), part
    return found


def _check_in_use(directory: str, limit: int) -> None:
    """Version 2 takes any limit, and kills what has more; version 1 refuses it, and so is it here."""
    before = cgroup_files.number(f"{directory}/memory.max")
    if before is not None and before <= limit:
        return
    stat = cgroup_files.fields(f"{directory}/memory.stat")
    reclaimable = sum(stat.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    used = (cgroup_files.number(f"{directory}/memory.current") or 0) - reclaimable
    if used > limit:
        reason = f"{used} bytes are in use that cannot be reclaimed"
        raise HostError("set", f"memory_limit_in_bytes {limit} of {directory}", reason, errno.EBUSY)


def _put_back(setting: Setting, before: str | None) -> str | None:
    """Write what was there before; why not, if so."""
    if before is None:
        if setting.shown:
            return None
        return f"what {setting.path} was cannot be read"
    try:
        cgroup_files.write(setting.path, before)
    except HostError as error:
        return None if error.errno in setting.gone or setting.shown else str(error)
    return None


def _check_memory(limit: int, together: int, where: str) -> None:
    """`limit` is of memory, `together` of memory and swap, in bytes; what version 1 shows for none is none."""
    if limit > together and not (limit >= _MOST_PAGES <= together):
        subject = f"memory_limit_in_bytes {'none' if limit >= _MOST_PAGES else limit}"
        reason = f"memory and swap together have {together}: set memory_swap_limit_in_bytes to no less"
        raise HostError("set", f"{subject} of {where}" if where else subject, reason, errno.EINVAL)


def _or_unlimited(limit: int) -> int:
    return limit if limit >= 0 else _UNLIMITED


def _maximum(limit: int) -> str:
    """A limit, where anything below zero is none."""
    return str(limit) if limit > 0 else "max"


def _directory(directories: Mapping[str, str], controller: str, what: str) -> str:
    if controller not in directories:
        raise HostError(
            "set", what, f"this node has no cgroup controller {controller}; mount or enable it", errno.ENODEV
        )
    return directories[controller]


def _before(path: str) -> str | None:
    """What a file says; None if it is not there or cannot be read."""
    try:
        return cgroup_files.read(path)
    except HostError:
        return None
