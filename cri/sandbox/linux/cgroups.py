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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cri.sandbox.host import HostError, refused_limit
from cri.sandbox.linux import cgroup_files, cgroup_limits, cgroup_usage
from cri.sandbox.linux.cgroup_files import failed
from cri.sandbox.linux.cgroup_limits import Changes, Setting
from cri.sandbox.spec import Resources, Usage

CONTROLLERS = ("pids", "memory", "cpu", "cpuacct", "cpuset", "hugetlb", "devices")
LATE = ("cpuset", "hugetlb")
"""Of version 1: groups that are made when they are used, as each costs time at every start. What runs then is taken in."""
_NOT_YET = (errno.ENOENT, errno.ENODEV, errno.ENOSPC)
"""How a group answers that is not made yet, or has no CPUs yet: whoever makes it takes in what it finds."""
_MOVES = 100
"""How often it is looked for processes that were forked while others were moved."""
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
        eager = {path for name, path in self.directories.items() if name not in LATE}
        for controller, directory in self.directories.items():
            if directory in eager:  # cpuset may be mounted together with one of the others
                self._create(controller, directory)

    def join_files(self) -> list[str]:
        """The files that a process writes 0 to in order to join; it must have one thread."""
        return [f"{path}/{self._joined}" for path in self._present(lambda name: name not in LATE)]

    def late_join_files(self) -> list[str]:
        """The same, of groups that may not be made yet: to be written last, and whatever comes of it (`_NOT_YET`) is right.

        Who makes such a group takes in what is in the others by then, so nobody is missed who has joined those before.
        """
        return [f"{path}/{self._joined}" for name, path in self.directories.items() if name in LATE]

    def join(self) -> None:
        """Move the calling process into the group."""
        join(self.join_files(), self.late_join_files())

    def subgroup(self, name: str) -> Group | None:
        """A group inside for keeping track of processes, in one hierarchy; no limits of its own. Made at once."""
        for directory in self._present(lambda name: name not in LATE):  # a new cpuset would have no CPUs
            path = f"{directory}/{name}"
            try:
                os.mkdir(path)  # noqa: PTH102
            except FileExistsError:
                pass
            except OSError:
                return None
            controller = next(one for one, where in self.directories.items() if where == directory)
            return Group(self.version, {controller: path})
        return None

    @property
    def _joined(self) -> str:
        # Version 1: writing 0 to `tasks` moves the current thread alone, without the global lock that `cgroup.procs`
        # takes: 0.1 ms instead of the 7 ms of an RCU grace period.
        return "cgroup.procs" if self.version == 2 else "tasks"

    def is_there(self) -> bool:
        """Whether any of the directories is."""
        return any(self._present())

    def processes(self) -> set[int]:
        """The processes in the group and below it. In all hierarchies: one may have failed to join one of them."""
        return {pid for directory in self._present() for pid in _processes(directory)}

    def kill(self) -> bool:
        """KILL all processes once. True if there was none."""
        found = self.processes()
        if found and self.version == 2:
            for directory in self._present():
                with contextlib.suppress(HostError):  # cgroup.kill came with Linux 5.14
                    cgroup_files.write(f"{directory}/cgroup.kill", "1")
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

    def apply(
        self,
        given: Resources,
        whole: Resources | None = None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Set the limits that are given, on whatever is in the group: all of them, or none.

        `whole` is what all limits will be with them (`given`, for a new group); `finish` is a last step that belongs to
        it. Raises HostError with the first that is refused, once the others are put back; HalfUpdatedError if one
        could not be.
        """
        changes = Changes()
        try:
            late = self._make_late(given, changes)
            self._set_oom_score(given, changes)
            for setting in self._settings(given, whole or given):
                changes.write(setting)
            for controller in late:
                self._take_in(controller)
            if finish is not None:
                finish()
        except Exception as error:
            failure = error if isinstance(error, HostError) else HostError("set", "limits", str(error))
            raise refused_limit(changes.put_back(failure)) from error

    def set(self, controller: str, name: str, value: str) -> None:
        """Write to a file of a controller."""
        cgroup_files.write(f"{self.directories[controller]}/{name}", value)

    def oom_kills(self) -> int:
        """How many processes the memory limit has killed."""
        if self.version == 2:
            return cgroup_files.fields(f"{self.directories['']}/memory.events").get("oom_kill", 0)
        if "memory" not in self.directories:
            return 0
        return cgroup_files.fields(f"{self.directories['memory']}/memory.oom_control").get("oom_kill", 0)

    def usage(self) -> Usage:
        """What the group has used."""
        if self.version == 2:
            return cgroup_usage.usage_v2(self.directories[""])
        return cgroup_usage.usage_v1(self.directories)

    def _present(self, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[str]:
        """The directories that are there, each once, of the controllers that are wanted."""
        paths = (path for name, path in self.directories.items() if wanted(name))
        return (path for path in dict.fromkeys(paths) if os.path.isdir(path))  # noqa: PTH112

    def _settings(self, given: Resources, whole: Resources) -> Iterator[Setting]:
        if self.version == 2:
            return cgroup_limits.settings_v2(self.directories[""], given, whole)
        return cgroup_limits.settings_v1(self.directories, given)

    def _make_late(self, given: Resources, changes: Changes) -> list[str]:
        """Make the groups that are needed from now on; nobody is in them yet."""
        if self.version == 2:
            return []
        used = {"cpuset": given.cpuset_cpus or given.cpuset_mems, "hugetlb": given.hugepage_limits}
        late = [name for name in LATE if used[name] and name in self.directories]
        if late and not any(self._present(lambda name: name not in LATE)):
            # Nobody would take away what is made for a container that has given back all it had.
            raise HostError(
                "limit", f"cgroup {next(iter(self.directories.values()))}", "it is gone", errno.ENOENT
            )
        for name in late:
            at = directory = self.directories[name]
            while not os.path.isdir(at):  # noqa: PTH112
                changes.then(Group(1, {name: at}).remove_if_empty)
                at = os.path.dirname(at)  # noqa: PTH120
            self._create(name, directory)
        return late

    def _take_in(self, controller: str) -> None:
        """Move what is in the other groups into this one, with all its threads, and what it forks meanwhile."""
        directory = self.directories[controller]
        ended: set[int] = set()
        for _ in range(_MOVES):
            outside = self.processes() - set(_processes(directory)) - ended
            if not outside:
                return
            for pid in outside:
                try:
                    cgroup_files.write(f"{directory}/cgroup.procs", str(pid))
                except HostError as error:
                    if error.errno != errno.ESRCH:
                        raise
                    ended.add(pid)
        raise HostError(
            "move", f"all processes into cgroup {directory}", "they fork faster than they can be moved"
        )

    def _set_oom_score(self, given: Resources, changes: Changes) -> None:
        """Of all that runs; what is forked meanwhile has its parent's, or is found by another look."""
        if given.oom_score_adj is None:
            return
        part = Resources(oom_score_adj=given.oom_score_adj)
        seen: set[int] = set()
        for _ in range(_MOVES):
            new = self.processes() - seen
            if not new:
                return
            for pid in new:
                path, value = f"/proc/{pid}/oom_score_adj", str(given.oom_score_adj)
                changes.write(Setting(path, value, part, gone=(errno.ENOENT, errno.ESRCH)))
            seen |= new

    def _create(self, controller: str, directory: str) -> None:
        parent = os.path.dirname(directory)  # noqa: PTH120
        try:
            try:
                os.mkdir(directory)  # noqa: PTH102
            except FileNotFoundError:
                self._create(controller, parent)
                os.mkdir(directory)  # noqa: PTH102
        except FileExistsError:
            if controller == "cpuset":
                _inherit_cpuset(directory)
            return
        except OSError as error:
            raise failed("create", directory, error) from error
        if self.version == 2:
            self._delegate(parent)
        elif controller == "cpuset":
            _inherit_cpuset(directory)

    def _delegate(self, parent: str) -> None:
        available = Path(parent, "cgroup.controllers").read_text().split()
        for controller in ("cpu", "memory", "pids", "cpuset", "hugetlb"):
            if controller in available:
                with contextlib.suppress(HostError):  # one that is in use elsewhere must not cost the others
                    cgroup_files.write(f"{parent}/cgroup.subtree_control", f"+{controller}")


def join(files: Sequence[str], late: Sequence[str]) -> None:
    """Move the calling process into groups, by what `join_files` and `late_join_files` have told."""
    for path in files:
        cgroup_files.write(path, "0")
    for path in late:
        try:
            cgroup_files.write(path, "0")
        except HostError as error:
            if error.errno not in _NOT_YET:
                raise


def _inherit_cpuset(directory: str) -> None:
    """A new cpuset has no CPUs, and nothing can join it; nor has one that others have made and not set up."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        above: list[str] = []
        at = directory
        while not (value := cgroup_files.read(f"{at}/{name}")):
            above.append(at)
            at = os.path.dirname(at)  # noqa: PTH120
        for empty in reversed(above):
            cgroup_files.write(f"{empty}/{name}", value)


def _page_size(kilobytes: int) -> str:
    """As the kernel writes it (mm/hugetlb_cgroup.c, mem_fmt)."""
    for unit, size in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= size:
            return f"{kilobytes // size}{unit}"
    return f"{kilobytes}KB"


def _processes(directory: str) -> Iterator[int]:
    for path, _, _ in os.walk(directory):
        try:
            with open(f"{path}/cgroup.procs") as file:  # noqa: PTH123
                yield from map(int, file.read().split())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise failed("read", path, error) from error


def _rmdir(path: str) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        try:
            os.rmdir(path)  # noqa: PTH106
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise failed("remove", path, error) from error
            time.sleep(_REMOVE_PAUSE)  # a process that has just ended still counts for a moment
        else:
            return
    raise HostError("remove", f"cgroup {path}", "it still has processes", errno.EBUSY)
