"""Control groups: limits, accounting, and the only sure way to find all processes of a container.

Version 1 (a hierarchy per controller), version 2, and hybrids of both; cgroups(7) and the kernel's
Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst. A `Group` is one directory in each hierarchy that matters.
A controller that the node does not have is done without; `missing_controllers` tells.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from cri.sandbox.host import HostError
from cri.sandbox.spec import Resources, Usage

CONTROLLERS = ("pids", "memory", "cpu", "cpuacct", "cpuset", "hugetlb")
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
"""Has a directory for each size (Documentation/admin-guide/mm/hugetlbpage.rst)."""
_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE = 0.01


class Hierarchies:
    """The mounted hierarchies of this node."""

    def __init__(self, v1: dict[str, str], v2: str | None) -> None:
        self.v1 = v1
        self.v2 = v2

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Hierarchies:
        """Read them from /proc/self/mountinfo (proc(5))."""
        v1: dict[str, str] = {}
        v2 = None
        for line in (mountinfo or Path("/proc/self/mountinfo").read_text()).splitlines():
            before, _, after = line.partition(" - ")
            where = before.split()[4]
            kind, _, options = after.split()[:3]
            if kind == "cgroup2":
                v2 = where
            elif kind == "cgroup":
                v1 |= dict.fromkeys(set(options.split(",")) & set(CONTROLLERS), where)
        # In a hybrid the unified hierarchy has no controllers of its own.
        return cls(v1, None if v1 else v2)

    def missing_controllers(self) -> list[str]:
        """Controllers that pods need and this node lacks."""
        if self.v2:
            present = set(Path(self.v2, "cgroup.controllers").read_text().split()) | {"cpuacct"}
        else:
            present = set(self.v1)
        return [name for name in ("memory", "cpu", "cpuacct", "pids") if name not in present]

    def hugepages(self, sizes: Path = _HUGEPAGES) -> frozenset[str]:
        """The sizes of large pages that a group can limit, as its files have them in their names: 2MB."""
        controllers = Path(self.v2, "cgroup.controllers").read_text().split() if self.v2 else self.v1
        if "hugetlb" not in controllers or not sizes.is_dir():
            return frozenset()
        kilobytes = (int(path.name.removeprefix("hugepages-").removesuffix("kB")) for path in sizes.iterdir())
        return frozenset(map(_page_size, kilobytes))

    def group(self, path: str) -> Group:
        """The group at a path that starts at the root of each hierarchy."""
        relative = path.strip("/")
        if ".." in relative.split("/"):
            raise HostError("use", f"cgroup {path}", "the path must not contain ..")
        if self.v2:
            return Group(2, {"": f"{self.v2}/{relative}"})
        return Group(1, {name: f"{where}/{relative}" for name, where in self.v1.items()})

    def roots(self) -> list[str]:
        """The mount points, each once."""
        return [self.v2] if self.v2 else list(dict.fromkeys(self.v1.values()))


class Group:
    """One cgroup. All methods block (shortly) and raise HostError."""

    def __init__(self, version: int, directories: dict[str, str]) -> None:
        self.version = version
        self.directories = directories
        """By controller; version 2 has one, whose key is empty."""

    def create(self) -> None:
        """Make the directories, and their parents as far as they are missing."""
        for controller, directory in self.directories.items():
            if controller not in (
                "cpuset",
                "hugetlb",
            ):  # made when they are used: each costs time at every start
                self._create(controller, directory)

    def join_files(self) -> list[str]:
        """The files that a process writes 0 to in order to join; it must have one thread."""
        # Version 1: writing 0 to `tasks` moves the current thread alone, without the global lock that `cgroup.procs`
        # takes: 0.1 ms instead of the 7 ms of an RCU grace period.
        name = "cgroup.procs" if self.version == 2 else "tasks"
        return [f"{directory}/{name}" for directory in self._present()]

    def join(self) -> None:
        """Move the calling process into the group."""
        for path in self.join_files():
            _write(path, "0")

    def subgroup(self, name: str) -> Group | None:
        """A group inside for keeping track of processes, in one hierarchy; no limits of its own. Made at once."""
        for controller, directory in self.directories.items():
            if os.path.isdir(directory):  # noqa: PTH112
                path = f"{directory}/{name}"
                try:
                    os.mkdir(path)  # noqa: PTH102
                except FileExistsError:
                    pass
                except OSError:
                    return None
                return Group(self.version, {controller: path})
        return None

    def processes(self) -> set[int]:
        """The processes in the group and below it. In all hierarchies: one may have failed to join one of them."""
        return {pid for directory in self._present() for pid in _processes(directory)}

    def kill(self) -> bool:
        """KILL all processes once. True if there was none."""
        found = self.processes()
        if found and self.version == 2:
            for directory in self._present():
                with contextlib.suppress(HostError):  # cgroup.kill came with Linux 5.14
                    _write(f"{directory}/cgroup.kill", "1")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    def kill_and_wait(self, seconds: float) -> bool:
        """KILL until nothing is left. False if something is, after `seconds`."""
        end = time.monotonic() + seconds
        while not self.kill():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def remove(self) -> None:
        """Remove the directories and those below; what is gone already is fine."""
        for directory in self._present():
            for path, _, _ in os.walk(directory, topdown=False):
                _rmdir(path)

    def remove_if_empty(self) -> None:
        """Remove the directories unless something is in them."""
        for directory in self._present():
            with contextlib.suppress(OSError):  # EBUSY: it is in use
                os.rmdir(directory)  # noqa: PTH106

    def apply(self, resources: Resources) -> None:
        """Set the limits that are given. Raises HostError with the first that the kernel refuses."""
        if self.version == 2:
            self._apply_v2(resources)
        else:
            self._apply_v1(resources)

    def oom_kills(self) -> int:
        """How many processes the memory limit has killed."""
        if self.version == 2:
            return _fields(f"{self.directories['']}/memory.events").get("oom_kill", 0)
        if "memory" not in self.directories:
            return 0
        return _fields(f"{self.directories['memory']}/memory.oom_control").get("oom_kill", 0)

    def usage(self) -> Usage:
        """What the group has used."""
        return self._usage_v2() if self.version == 2 else self._usage_v1()

    def _present(self) -> Iterator[str]:
        return (path for path in dict.fromkeys(self.directories.values()) if os.path.isdir(path))  # noqa: PTH112

    def _create(self, controller: str, directory: str) -> None:
        try:
            os.mkdir(directory)  # noqa: PTH102
        except FileExistsError:
            return
        except FileNotFoundError:
            parent = os.path.dirname(directory)  # noqa: PTH120
            self._create(controller, parent)
            os.mkdir(directory)  # noqa: PTH102
        except OSError as error:
            raise _failed("create", directory, error) from error
        if self.version == 2:
            self._delegate(os.path.dirname(directory))  # noqa: PTH120
        elif controller == "cpuset":
            # A new cpuset has no CPUs, and nothing can join it.
            for name in ("cpuset.cpus", "cpuset.mems"):
                inherited = Path(directory).parent.joinpath(name).read_text()
                _write(f"{directory}/{name}", inherited.strip())

    def _delegate(self, parent: str) -> None:
        available = Path(parent, "cgroup.controllers").read_text().split()
        for controller in ("cpu", "memory", "pids", "cpuset", "hugetlb"):
            if controller in available:
                with contextlib.suppress(HostError):  # one that is in use elsewhere must not cost the others
                    _write(f"{parent}/cgroup.subtree_control", f"+{controller}")

    def _apply_v1(self, wanted: Resources) -> None:
        settings = [
            ("cpu", "cpu.shares", wanted.cpu_shares or None),
            ("cpu", "cpu.cfs_period_us", wanted.cpu_period or None),
            ("cpu", "cpu.cfs_quota_us", wanted.cpu_quota or None),
            ("pids", "pids.max", _maximum(wanted.pids_limit)),
            ("cpuset", "cpuset.cpus", wanted.cpuset_cpus or None),
            ("cpuset", "cpuset.mems", wanted.cpuset_mems or None),
        ]
        settings += [
            ("hugetlb", f"hugetlb.{size}.limit_in_bytes", limit)
            for size, limit in wanted.hugepage_limits.items()
        ]
        for controller, name, value in settings:
            if value is not None and controller in self.directories:
                directory = self.directories[controller]
                self._create(controller, directory)
                _write(f"{directory}/{name}", str(value))
        if "memory" in self.directories:
            self._apply_v1_memory(wanted)

    def _apply_v1_memory(self, wanted: Resources) -> None:
        directory = self.directories["memory"]
        settings: list[tuple[str, int]] = []
        if wanted.memory_limit:
            settings.append((f"{directory}/memory.limit_in_bytes", wanted.memory_limit))
        swap = f"{directory}/memory.memsw.limit_in_bytes"
        if wanted.memory_swap_limit and os.path.exists(swap):  # noqa: PTH110  # absent without swap accounting
            settings.append((swap, wanted.memory_swap_limit))
        try:
            for path, value in settings:
                _write(path, str(value))
        except HostError:
            # Memory must never exceed memory and swap together, so the order depends on the direction.
            for path, value in reversed(settings):
                _write(path, str(value))
            for path, value in settings:
                _write(path, str(value))

    def _apply_v2(self, wanted: Resources) -> None:
        settings: dict[str, str] = {}
        if wanted.cpu_shares:
            # The kernel's own range, 2..262144 to 1..10000 (KEP-2254).
            settings["cpu.weight"] = str(1 + (max(wanted.cpu_shares, 2) - 2) * 9999 // 262142)
        if wanted.cpu_quota or wanted.cpu_period:
            quota = str(wanted.cpu_quota) if wanted.cpu_quota and wanted.cpu_quota > 0 else "max"
            settings["cpu.max"] = f"{quota} {wanted.cpu_period or 100_000}"
        if wanted.memory_limit:
            settings["memory.max"] = str(wanted.memory_limit) if wanted.memory_limit > 0 else "max"
            if wanted.memory_swap_limit and wanted.memory_swap_limit > 0:
                settings["memory.swap.max"] = str(max(wanted.memory_swap_limit - wanted.memory_limit, 0))
        if (pids := _maximum(wanted.pids_limit)) is not None:
            settings["pids.max"] = str(pids)
        if wanted.cpuset_cpus:
            settings["cpuset.cpus"] = wanted.cpuset_cpus
        if wanted.cpuset_mems:
            settings["cpuset.mems"] = wanted.cpuset_mems
        for size, limit in wanted.hugepage_limits.items():
            settings[f"hugetlb.{size}.max"] = str(limit)
        directory = self.directories[""]
        for name, value in (settings | wanted.unified).items():
            if "/" in name:
                raise HostError("set", f"cgroup setting {name}", "the name of a file was expected")
            path = f"{directory}/{name}"
            # Given by name: refused if it is not there. Else the controller is missing, which the node's condition tells.
            if name in wanted.unified or os.path.exists(path):  # noqa: PTH110
                _write(path, value)

    def _usage_v1(self) -> Usage:
        memory = self.directories.get("memory", "")
        stat = _fields(f"{memory}/memory.stat")
        used = _number(f"{memory}/memory.usage_in_bytes") or 0
        limit = _number(f"{memory}/memory.limit_in_bytes")
        together = _number(f"{memory}/memory.memsw.usage_in_bytes")
        working = max(used - stat.get("total_inactive_file", 0), 0)
        return Usage(
            timestamp=time.time_ns(),
            cpu_nanoseconds=_number(f"{self.directories.get('cpuacct', '')}/cpuacct.usage") or 0,
            memory_usage=used,
            memory_working_set=working,
            memory_rss=stat.get("total_rss", 0),
            # Without a limit the kernel shows the largest number of pages there is.
            memory_available=max(limit - working, 0) if limit is not None and limit < 1 << 62 else None,
            page_faults=stat.get("total_pgfault", 0),
            major_page_faults=stat.get("total_pgmajfault", 0),
            swap_usage=max(together - used, 0) if together is not None else None,
            processes=_number(f"{self.directories.get('pids', '')}/pids.current") or 0,
        )

    def _usage_v2(self) -> Usage:
        directory = self.directories[""]
        stat = _fields(f"{directory}/memory.stat")
        used = _number(f"{directory}/memory.current") or 0
        limit = _number(f"{directory}/memory.max")
        working = max(used - stat.get("inactive_file", 0), 0)
        return Usage(
            timestamp=time.time_ns(),
            cpu_nanoseconds=_fields(f"{directory}/cpu.stat").get("usage_usec", 0) * 1000,
            memory_usage=used,
            memory_working_set=working,
            memory_rss=stat.get("anon", 0),
            memory_available=max(limit - working, 0) if limit is not None else None,
            page_faults=stat.get("pgfault", 0),
            major_page_faults=stat.get("pgmajfault", 0),
            swap_usage=_number(f"{directory}/memory.swap.current"),
            processes=_number(f"{directory}/pids.current") or 0,
        )


def _page_size(kilobytes: int) -> str:
    """As the kernel writes it (mm/hugetlb_cgroup.c, mem_fmt)."""
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= size:
            return f"{kilobytes // size}{unit}"
    return f"{kilobytes}KB"


def _maximum(limit: int | None) -> int | str | None:
    """A pids limit as the kernel wants it; 0 leaves it alone, as in the CRI's int64 defaults."""
    return None if not limit else limit if limit > 0 else "max"


def _processes(directory: str) -> Iterator[int]:
    for path, _, _ in os.walk(directory):
        try:
            with open(f"{path}/cgroup.procs") as file:  # noqa: PTH123
                yield from map(int, file.read().split())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise _failed("read", path, error) from error


def _rmdir(path: str) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        try:
            os.rmdir(path)  # noqa: PTH106
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _failed("remove", path, error) from error
            time.sleep(_REMOVE_PAUSE)  # a process that has just ended still counts for a moment
        else:
            return
    raise HostError("remove", f"cgroup {path}", "it still has processes", errno.EBUSY)


def _write(path: str, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed(f"write {value} to", path, error) from error


def _fields(path: str) -> dict[str, int]:
    pairs = (line.split() for line in (_content(path) or b"").splitlines())
    return {pair[0].decode(): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: str) -> int | None:
    """The number in a file; None for `max`, or where the controller is missing."""
    text = (_content(path) or b"").strip()
    return int(text) if text.isdigit() else None


def _content(path: str) -> bytes | None:
    """What is in a file of a few kilobytes, by as few calls as can be: a dozen are read of each container."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _failed(operation: str, path: str, error: OSError) -> HostError:
    return HostError(operation, f"cgroup {path}", error.strerror or str(error), error.errno)
