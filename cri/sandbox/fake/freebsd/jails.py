"""Jails as sys/kern/kern_jail.c has them, their processes and their CPUs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from cri.sandbox.fake.freebsd.parameters import (
    ALLOW,
    ALLOW_BEYOND_PARENT,
    ALLOW_DEFAULT,
    NAME_SIZE,
    SYSV,
    Kind,
    check,
    refuse,
)
from cri.sandbox.freebsd.calls import DISABLE, INHERIT, NEW, Jail, JailValue, Process

JAIL_MAX = 999_999
"""The highest jid, and the host's children.max."""


@dataclass(slots=True, eq=False)
class FakeJail:
    """A jail. The host is one too: jid 0, without a name."""

    jid: int
    name: str
    path: str
    parent: FakeJail | None
    parameters: dict[str, JailValue]
    """As they were given, and what a parent's restrictions made of them."""
    allowed: set[str]
    children_max: int
    cpus: frozenset[int]
    sysv: dict[str, int] = field(default_factory=dict)
    """The jid of the jail whose objects it uses; those that are disabled are not in here."""
    vnet: int = 0
    """The jid of the jail that its network stack belongs to."""
    dying: bool = False
    holds: int = 0
    """Sockets and vnodes that keep it dying."""
    polls: int = 0
    """How many more times it is seen dying."""

    @property
    def ancestors(self) -> Iterator[FakeJail]:
        """The jail itself, its parent, and so on up to the host."""
        jail: FakeJail | None = self
        while jail is not None:
            yield jail
            jail = jail.parent

    def as_seen(self) -> Jail:
        """What jail_get(2) tells."""
        return Jail(self.jid, self.name, self.path, self.dying)


@dataclass(slots=True, eq=False)
class FakeProcess:
    """A process of a jail."""

    pid: int
    jail: FakeJail
    cpu_microseconds: int
    resident: int
    stuck: bool
    """It does not die of KILL, but sits in the kernel."""


class JailTable:
    """All jails."""

    def __init__(self, cpus: int, directory: Callable[[str], str]) -> None:
        """`directory` gives the path without links of a directory."""
        self._directory = directory
        host_allows = set(ALLOW) - {"allow.unprivileged_parent_tampering"}
        self.host = FakeJail(0, "", "/", None, {}, host_allows, JAIL_MAX, frozenset(range(cpus)))
        self.host.sysv = dict.fromkeys(SYSV, 0)
        self.all: list[FakeJail] = []
        self.processes: dict[int, FakeProcess] = {}
        self.linger = 0
        self._last_jid = 0
        self._last_dead_jid = JAIL_MAX + 1
        self._pids = itertools.count(1000)

    # -- jail_set(2)

    def create(self, parameters: Mapping[str, JailValue], kinds: Mapping[str, Kind]) -> int:
        """JAIL_CREATE."""
        check(parameters, kinds, new=True)
        name, path = str(parameters.get("name", "")), self._directory(str(parameters.get("path", "/")))
        wanted = self._wanted_jid(parameters, name)
        dying = self._check_jid(wanted)
        parent, last = self._place(name)
        if self._children(self.host) >= self.host.children_max:
            # The caller's count, and those above it: not that of the parent.
            raise refuse(errno.EPERM, "prison limit exceeded", name)
        if dying is not None:
            dying.jid = self._dead_jid()
        jid = wanted or self._next_jid()
        self._check_restrictions(parameters, parent, kinds)
        last = last or str(jid)
        if last.isdecimal() and last != str(jid):
            raise refuse(errno.EINVAL, "name cannot be numeric (unless it is the jid)", name)
        full = f"{parent.name}.{last}" if parent.name else last
        if len(os.fsencode(full)) >= NAME_SIZE:
            raise refuse(errno.ENAMETOOLONG, subject=full)
        sysv = self._sysv(parameters, parent, jid)
        jail = FakeJail(
            jid, full, path, parent, {}, set(ALLOW_DEFAULT & parent.allowed), 0, parent.cpus, sysv
        )
        jail.vnet = jid if parameters.get("vnet") == NEW else parent.vnet
        networks = {} if jail.vnet == jid else {"ip4": DISABLE, "ip6": DISABLE}
        jail.parameters = {"enforce_statfs": 2, **networks}
        self.all.append(jail)
        self._set(jail, parameters)
        return jid

    def update(self, jid: int, parameters: Mapping[str, JailValue], kinds: Mapping[str, Kind]) -> None:
        """JAIL_UPDATE. What a jail may have is measured by the caller's jail here, which is the host, not by its parent."""
        check(parameters, kinds, new=False)
        jail = self.living(jid)
        if jail is None:
            raise refuse(errno.ENOENT, f"jail {jid} not found", str(jid))
        if "name" in parameters and "." in str(parameters["name"]):
            raise refuse(errno.EINVAL, "cannot change jail's parent", str(parameters["name"]))
        if "name" in parameters or parameters.get("persist") is False:
            raise NotImplementedError("the jails in memory keep their names and persist")
        self._check_restrictions(parameters, self.host, kinds)
        assert jail.parent is not None
        jail.sysv = jail.sysv | self._sysv(parameters, jail.parent, jid)
        for name in SYSV:
            if parameters.get(name) == DISABLE:
                for below in self.with_descendants(jail):
                    below.sysv.pop(name, None)
        self._set(jail, parameters)

    # -- jail_get(2), jail_remove(2)

    def seen(self, *, dying: bool) -> list[Jail]:
        """All jails, by jid."""
        self._tick()
        return [
            jail.as_seen() for jail in sorted(self.all, key=lambda one: one.jid) if dying or not jail.dying
        ]

    def find(self, name: str, *, dying: bool) -> Jail | None:
        """A jail by its name: the living one before those that are dying."""
        self._tick()
        found = sorted((jail for jail in self.all if jail.name == name), key=lambda jail: jail.dying)
        return found[0].as_seen() if found and (dying or not found[0].dying) else None

    def remove(self, jid: int) -> None:
        """KILL and let die. What is dying already is let be."""
        jail = next((jail for jail in self.all if jail.jid == jid), None)
        if jail is None:
            raise refuse(errno.EINVAL, subject=str(jid))
        for doomed in self.with_descendants(jail):
            if not doomed.dying:
                doomed.dying = True
                doomed.polls = self.linger
            for process in [one for one in self.processes.values() if one.jail is doomed and not one.stuck]:
                del self.processes[process.pid]
        self.reap()

    def living(self, jid: int) -> FakeJail | None:
        """The jail of a jid, unless it is dying."""
        return next((jail for jail in self.all if jail.jid == jid and not jail.dying), None)

    def with_descendants(self, jail: FakeJail) -> list[FakeJail]:
        """A jail and all below it, children last."""
        return [other for other in self.all if jail in other.ancestors]

    def reap(self) -> None:
        """Let go of the dead: those that nothing refers to, neither a child."""
        for jail in reversed(self.all.copy()):
            used = jail.holds or jail.polls or any(child.parent is jail for child in self.all)
            if jail.dying and not used and not any(one.jail is jail for one in self.processes.values()):
                self.all.remove(jail)

    # -- processes, CPUs

    def spawn(self, name: str, cpu_microseconds: int, resident: int, *, stuck: bool) -> int:
        """Have a process in a jail; its pid."""
        jail = next(jail for jail in self.all if jail.name == name and not jail.dying)
        process = FakeProcess(next(self._pids), jail, cpu_microseconds, resident, stuck)
        self.processes[process.pid] = process
        return process.pid

    def end(self, pid: int) -> None:
        """Let a process end, even one that is stuck."""
        self.processes.pop(pid, None)
        self.reap()

    def processes_of(self, jids: Collection[int]) -> list[Process]:
        """Of these jails and not of their children."""
        return [
            Process(one.pid, one.jail.jid, one.cpu_microseconds, one.resident)
            for one in self.processes.values()
            if one.jail.jid in jids
        ]

    def set_cpus(self, jid: int, cpus: Collection[int]) -> None:
        """cpuset_modify(): within what the parent has, and leaving no child without any."""
        wanted = frozenset(cpus)
        if not wanted:
            raise refuse(errno.EDEADLK, subject=f"jail {jid}")
        jail = next((jail for jail in self.all if jail.jid == jid), None)
        if jail is None:
            raise refuse(errno.ESRCH, subject=f"jail {jid}")
        assert jail.parent is not None
        if not wanted <= jail.parent.cpus:
            raise refuse(errno.EINVAL, subject=f"jail {jid}")
        below = self.with_descendants(jail)[1:]
        if any(not child.cpus & wanted for child in below):
            raise refuse(errno.EDEADLK, subject=f"jail {jid}")
        jail.cpus = wanted
        for child in below:
            child.cpus &= wanted

    def cpus(self, jid: int) -> frozenset[int]:
        """What the jail's set has."""
        jail = next((jail for jail in self.all if jail.jid == jid), None)
        if jail is None:
            raise refuse(errno.ESRCH, subject=f"jail {jid}")
        return jail.cpus

    # -- inside

    @staticmethod
    def _wanted_jid(parameters: Mapping[str, JailValue], name: str) -> int:
        """The jid that is asked for: by a last component of digits, too. 0 is any."""
        jid = int(parameters.get("jid", 0))
        if jid < 0:
            raise refuse(errno.EINVAL, "negative jid", name)
        last = name.rpartition(".")[2]
        return jid or (int(last) if re.fullmatch("[0-9]+", last) else 0)

    def _check_jid(self, jid: int) -> FakeJail | None:
        """The dying jail that has this jid, and has to make room."""
        owner = next((jail for jail in self.all if jid and jail.jid == jid), None)
        if owner is not None and not owner.dying:
            raise refuse(errno.EEXIST, f"jail {jid} already exists", str(jid))
        return owner

    def _place(self, name: str) -> tuple[FakeJail, str]:
        """The parent of a jail to be, and its own last component. Names of the dying are free."""
        above, dot, last = name.rpartition(".")
        parent = self.host
        if dot:
            found = sorted((jail for jail in self.all if jail.name == above), key=lambda jail: jail.dying)
            if not found:
                raise refuse(errno.ENOENT, f'jail "{above}" not found', name)
            parent = found[0]
            if parent.dying:
                raise refuse(errno.ENOENT, f'jail "{above}" is dying', name)
        if last and any(jail.name == name and not jail.dying for jail in self.all):
            raise refuse(errno.EEXIST, f'jail "{name}" already exists', name)
        return parent, last

    def _check_restrictions(
        self, parameters: Mapping[str, JailValue], above: FakeJail, kinds: Mapping[str, Kind]
    ) -> None:
        """What must not be more than `above` has."""
        if int(parameters.get("children.max", -1)) >= above.children_max:
            raise refuse(errno.EPERM, subject="children.max")
        for name, default in (("enforce_statfs", 0), ("securelevel", -1)):
            if name in parameters and int(parameters[name]) < int(above.parameters.get(name, default)):
                raise refuse(errno.EPERM, subject=name)
        given = {name for name, value in parameters.items() if name.startswith("allow.") and value}
        # Those of modules the host has, and every jail that was given them.
        had = above.allowed if above is not self.host else above.allowed | (kinds.keys() - ALLOW)
        for name in sorted(given - had - ALLOW_BEYOND_PARENT):
            raise refuse(errno.EPERM, subject=name)

    @staticmethod
    def _sysv(parameters: Mapping[str, JailValue], parent: FakeJail, jid: int) -> dict[str, int]:
        """Whose System V objects a jail uses: nobody's, unless it asks for it."""
        default = INHERIT if parameters.get("allow.sysvipc") else DISABLE
        found = {}
        for name in SYSV:
            how = parameters.get(name, default)
            if how in (NEW, INHERIT):
                if name in parameters and name not in parent.sysv:
                    raise refuse(errno.EPERM, subject=name)
                with contextlib.suppress(KeyError):
                    found[name] = jid if how == NEW else parent.sysv[name]
        return found

    def _set(self, jail: FakeJail, parameters: Mapping[str, JailValue]) -> None:
        """Keep parameters, and pass restrictions on to those below."""
        jail.parameters |= {
            name: value for name, value in parameters.items() if name not in ("name", "path", "jid")
        }
        below = self.with_descendants(jail)[1:]
        for name, value in parameters.items():
            if name == "children.max":
                jail.children_max = int(value)
                for child in below:
                    level = child.name.count(".") - jail.name.count(".")
                    child.children_max = min(child.children_max, max(jail.children_max - level, 0))
            elif name in ("enforce_statfs", "securelevel"):
                for child in below:
                    child.parameters[name] = max(int(child.parameters.get(name, -1)), int(value))
            elif name == "devfs_ruleset":
                for child in below:
                    child.parameters[name] = value
            elif name.startswith("allow.") and value:
                jail.allowed.add(name)
            elif name.startswith("allow."):
                for one in (jail, *below):
                    one.allowed.discard(name)

    def _children(self, jail: FakeJail) -> int:
        """children.cur: the dying count too."""
        return len(self.all) if jail is self.host else len(self.with_descendants(jail)) - 1

    def _next_jid(self) -> int:
        taken = {jail.jid for jail in self.all}
        for step in range(JAIL_MAX):
            jid = (self._last_jid + step) % JAIL_MAX + 1
            if jid not in taken:
                self._last_jid = jid
                return jid
        raise refuse(errno.EAGAIN, "no available jail IDs")

    def _dead_jid(self) -> int:
        taken = {jail.jid for jail in self.all}
        while True:
            self._last_dead_jid = self._last_dead_jid - 1 or JAIL_MAX
            if self._last_dead_jid not in taken:
                return self._last_dead_jid

    def _tick(self) -> None:
        for jail in self.all:
            jail.polls -= jail.dying and jail.polls > 0
        self.reap()
