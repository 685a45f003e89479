"""Control groups: limits, accounting, and the only sure way to find all processes of a container.

Version 1 (a hierarchy per controller), version 2, and hybrids of both; cgroups(7) and the kernel's
Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst. A `Group` is one directory in each hierarchy.
A controller that the node does not have is done without; `missing_controllers` tells.

**Limits out of reach.** Whoever is root in a user namespace may mount cgroups, and sees them from the root of its cgroup
namespace on: from the group it is in when it makes that. So processes of a container live in a group inside the one that has
the limits (`Group.inner`), in every hierarchy that is mounted; else it would be some group of the node's. Inside they may do
what they like; the limits above count all the same, and are written inside, too, as programs look for them there.
Containers of releases before this have no inner group: they run on, in the one with the limits, and get no new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cri.sandbox.host import HostError, refused_limit
from cri.sandbox.linux import cgroup_files, cgroup_limits, cgroup_tree
from cri.sandbox.linux.cgroup_files import failed
from cri.sandbox.linux.cgroup_limits import Changes, Setting
from cri.sandbox.spec import Resources

CONTROLLERS = ("pids", "memory", "cpu", "cpuacct", "cpuset", "hugetlb", "devices")
"""Those with limits or accounts; also what containers are shown of version 1."""
UNIFIED = "unified"
"""Of a hybrid: the hierarchy of version 2, which has no controllers there, but can kill and freeze."""
INNER = "container"
"""The name of the group that the processes are in. What execs are kept track of by is inside that."""
LATE = ("cpuset", "hugetlb")
"""Of version 1, where there is no inner group: made when they are used. What runs then is taken in."""
_MOST_BELOW = "10000"
"""Groups that a container may make of version 2: each takes memory of the kernel's, and time when it is removed."""
_MOVES = 100
"""How often it is looked for processes that were forked while others were moved."""


class Group:
    """One cgroup. All methods block (shortly) and raise HostError."""

    def __init__(self, version: int, directories: Mapping[str, str], *, late: Sequence[str] = LATE) -> None:
        self.version = version
        self.directories = dict(directories)
        """By controller, as `Hierarchies.v1`; with an empty key, and first, that of version 2 if it has the limits."""
        self._late = late

    @classmethod
    def noted(cls, note: Mapping[str, Any]) -> Group:
        """The group that a container's processes join, as its plan has it."""
        unified = {UNIFIED: note[UNIFIED]} if UNIFIED in note else {}
        late = () if note.get("inner") else LATE
        return cls(note["version"], note["directories"] | unified, late=late)

    def note(self) -> dict[str, Any]:
        """What of an inner group goes into a plan: so that wardens of the last release join what they know."""
        known = {name: path for name, path in self.directories.items() if name != UNIFIED}
        unified = {UNIFIED: self.directories[UNIFIED]} if UNIFIED in self.directories else {}
        return {"version": self.version, "directories": known, "inner": True} | unified

    @property
    def inner(self) -> Group:
        """The group inside of this one that processes are to be in."""
        inside = {name: f"{path}/{INNER}" for name, path in self.directories.items()}
        return Group(self.version, inside, late=())

    @property
    def has_inner(self) -> bool:
        """Whether processes are in there; not so for containers of earlier releases."""
        return any(os.path.isdir(path) for path in self.inner.directories.values())  # noqa: PTH112

    @property
    def shown(self) -> dict[str, str]:
        """What a container is shown of version 1."""
        return {name: path for name, path in self.directories.items() if name in CONTROLLERS}

    def create(self) -> None:
        """Make the directories, and their parents as far as they are missing."""
        self.make()
        if (unified := self.unified) is not None:
            with contextlib.suppress(HostError):  # before Linux 4.14
                cgroup_files.write(f"{unified}/cgroup.max.descendants", _MOST_BELOW)

    def make(self) -> None:
        """As `create`, for a group that processes are only in groups below of."""
        for controller, directory in self.directories.items():
            self._create(controller, directory)

    def create_inner(self) -> None:
        """Make the group inside, between rules for devices and limits.

        A group with others below takes no such rules any more; and the kernel's memory for this one counts.
        """
        self.inner.make()

    @property
    def unified(self) -> str | None:
        """The directory of version 2: what is not forked in there (clone3(2), CLONE_INTO_CGROUP) joins it in milliseconds."""
        return self.directories.get("" if self.version == 2 else UNIFIED)

    def join_files(self, *, born: bool = False) -> list[str]:
        """The files that a process writes 0 to in order to join; it must have one thread.

        `born`: without that of `unified`, as it was born there.
        """
        found = dict.fromkeys(path for name, path in self.directories.items() if name not in self._late)
        if self._late:  # where processes have always joined what there was
            found = dict.fromkeys(filter(os.path.isdir, found))
        if born and self.unified is not None:
            found.pop(self.unified, None)
        return [f"{path}/{self._joined(path)}" for path in found]

    def late_join_files(self) -> list[str]:
        """The same, of groups that may not be made yet: to be written last, and whatever `Tolerate.NOT_YET` says is right.

        Who makes such a group takes in what is in the others by then, so nobody is missed who has joined those before.
        """
        late = (path for name, path in self.directories.items() if name in self._late)
        return [f"{path}/{self._joined(path)}" for path in late]

    def subgroup(self, name: str) -> Group | None:
        """A group inside for keeping track of processes, in one hierarchy; no limits of its own. Made at once."""
        # Of `pids` if that is there: it costs the least, and shares nothing out.
        for controller in sorted(self.directories, key=lambda controller: controller not in ("", "pids")):
            directory = self.directories[controller]
            if controller in (*LATE, UNIFIED) or not os.path.isdir(directory):  # noqa: PTH112
                continue  # a new cpuset would have no CPUs
            path = f"{directory}/{name}"
            try:
                os.mkdir(path)  # noqa: PTH102
            except FileExistsError:
                pass
            except OSError:
                return None
            return Group(self.version, {controller: path}, late=())
        return None

    def for_exec(self, name: str) -> Group:
        """The group that a process joins which is kept track of by that name."""
        own = self.subgroup(name)
        if own is None:
            return self
        (controller, path), *_ = own.directories.items()
        inside = {
            one: path if where == self.directories[controller] else where
            for one, where in self.directories.items()
        }
        return Group(self.version, inside, late=self._late)

    def _joined(self, directory: str) -> str:
        # Version 1: writing 0 to `tasks` moves the current thread alone, without the global lock that `cgroup.procs`
        # takes: 0.1 ms instead of the 7 ms of an RCU grace period.
        return "cgroup.procs" if directory == self.unified else "tasks"

    def is_there(self) -> bool:
        """Whether any of the directories is."""
        return any(map(os.path.isdir, self._distinct()))

    def processes(self) -> set[int]:
        """The processes in the group and below it. In all hierarchies: one may have failed to join one of them."""
        return {pid for directory in self._distinct() for pid in cgroup_tree.processes(directory)}

    def kill(self) -> bool:
        """KILL all processes once, frozen ones too. True if there was none."""
        found = self.processes()
        if found and self.unified is not None:
            with contextlib.suppress(HostError):  # cgroup.kill came with Linux 5.14
                cgroup_files.write(f"{self.unified}/cgroup.kill", "1")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if found:
            self.thaw()
        return not found

    def thaw(self) -> None:
        """Let what the container has frozen of itself (version 1) go on, as it dies of no signal before. Raises HostError."""
        if "freezer" in self.directories:
            cgroup_tree.thaw(self.directories["freezer"])

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
        for directory in self._distinct():
            cgroup_tree.remove(directory)

    def remove_if_empty(self) -> None:
        """Remove the directories unless something is in them."""
        for directory in self._distinct():
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
        whole = whole or given
        try:
            inner = self.has_inner
            late = [] if inner else self._make_late(given, changes)
            self._set_oom_score(given, changes)
            if inner and self.version == 1:
                for setting in cgroup_limits.make_way_v1(self.directories, given):
                    changes.write(setting)
            for setting in _settings(self, given, whole):
                changes.write(setting)
            if inner:
                self._show(given, whole, changes)
            for controller in late:
                self._take_in(controller)
            if finish is not None:
                finish()
        except Exception as error:
            failure = error if isinstance(error, HostError) else HostError("set", "limits", str(error))
            raise refused_limit(changes.put_back(cgroup_limits.explained(failure))) from error

    def set(self, controller: str, name: str, value: str) -> None:
        """Write to a file of a controller."""
        cgroup_files.write(f"{self.directories[controller]}/{name}", value)

    def oom_kills(self) -> int:
        """How many processes the memory limit has killed. Each counts where it was, whichever group above had the limit."""
        if self.version == 2:
            # With those below, unless mounted with memory_localevents.
            events = cgroup_files.fields(f"{self.directories['']}/memory.events").get("oom_kill", 0)
            return events or cgroup_tree.total(self.directories[""], "memory.events.local", "oom_kill")
        if "memory" not in self.directories:
            return 0
        return cgroup_tree.total(self.directories["memory"], "memory.oom_control", "oom_kill")

    def _distinct(self) -> Iterator[str]:
        """The directories, each once: controllers may be mounted together."""
        return iter(dict.fromkeys(self.directories.values()))

    def _show(self, given: Resources, whole: Resources, changes: Changes) -> None:
        """Write what limits this group has into the inner one, too. Programs read them there; what they do to them is theirs."""
        given = replace(given, cpuset_cpus=None, cpuset_mems=None)  # which it has already
        # Its values may not go together with those that the container has set.
        with contextlib.suppress(HostError):
            for setting in _settings(self.inner, given, whole):
                changes.write(replace(setting, shown=True))

    def _make_late(self, given: Resources, changes: Changes) -> list[str]:
        """Make the groups that are needed from now on; nobody is in them yet."""
        if self.version == 2:
            return []
        used = {"cpuset": given.cpuset_cpus or given.cpuset_mems, "hugetlb": given.hugepage_limits}
        late = [name for name in LATE if used[name] and name in self.directories]
        eager = (path for name, path in self.directories.items() if name not in (*LATE, UNIFIED))
        if late and not any(map(os.path.isdir, eager)):
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
            outside = self.processes() - set(cgroup_tree.processes(directory)) - ended
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
        if controller == "":
            self._delegate(parent)
        elif controller == "cpuset":
            _inherit_cpuset(directory, new=True)

    def _delegate(self, parent: str) -> None:
        available = Path(parent, "cgroup.controllers").read_text().split()
        for controller in ("cpu", "memory", "pids", "cpuset", "hugetlb", "io"):
            if controller in available:
                with contextlib.suppress(HostError):  # one that is in use elsewhere must not cost the others
                    cgroup_files.write(f"{parent}/cgroup.subtree_control", f"+{controller}")


def _inherit_cpuset(directory: str, *, new: bool = False) -> None:
    """A new cpuset has no CPUs, and nothing can join it; nor has one that others have made and not set up."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        above = [directory] if new else []
        at = os.path.dirname(directory) if new else directory  # noqa: PTH120
        while not (value := cgroup_files.read(f"{at}/{name}")):
            above.append(at)
            at = os.path.dirname(at)  # noqa: PTH120
        for empty in reversed(above):
            cgroup_files.write(f"{empty}/{name}", value)


def _settings(group: Group, given: Resources, whole: Resources) -> Iterator[Setting]:
    if group.version == 2:
        return cgroup_limits.settings_v2(group.directories[""], given, whole)
    return cgroup_limits.settings_v1(group.directories, given)
