"""The kernel that the driver calls, made of the tables of this package.

Its rules are those of FreeBSD 15.1, read in sys/kern and tried on that kernel. Some are not what one expects:

- The parent's children.max does not bound what is made from the host, and an update is measured by the caller's jail:
  only a new jail cannot have more than its parent.
- A dying jail does not take its name, and gets another jid if its own is asked for; but it keeps its root busy.
- racct knows every name: a jail that is gone has used nothing.

Every call counts, and can be told to fail: that is how undo is tested at every single step. Calls may come from threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from cri.sandbox.fake.freebsd import rctl
from cri.sandbox.fake.freebsd.files import MountedFiles
from cri.sandbox.fake.freebsd.jails import JAIL_MAX, FakeJail, JailTable
from cri.sandbox.fake.freebsd.mounts import KINDS, FakeMount, MountTable
from cri.sandbox.fake.freebsd.parameters import SYSV, Kind, known, refuse
from cri.sandbox.fake.kernel import InjectedError
from cri.sandbox.freebsd.calls import Calls, DevfsRule, Jail, JailValue, Mount, Process
from cri.sandbox.usage import InterfaceUsage

_MODULES = frozenset({*KINDS, *SYSV, "linux_common", "linux64elf", "if_epair", "if_bridge", "pf"})


class FakeFreeBSD(Calls):
    """One machine. Directories and files that calls name are real ones."""

    def __init__(self, *, cpus: int = 4, scratch: Path | None = None) -> None:
        """Filesystems other than nullfs have content if there is a directory, `scratch`, to keep it in."""
        self.modules = set(_MODULES)
        """Kernel modules; those of filesystems are needed for mounts, and some have jail parameters."""
        self.missing: set[str] = set()
        """Jail parameters that this kernel has not: meta and env on FreeBSD 14."""
        self.sysctls: dict[str, bytes] = {
            "kern.osreldate": _integer(1_501_000),
            "kern.osrelease": b"15.1-RELEASE-p1\0",
            "hw.ncpu": _integer(cpus),
            "hw.pagesize": _integer(4096),
            "net.fibs": _integer(1),
            "security.jail.jailed": _integer(0),
            "security.jail.children.max": _integer(JAIL_MAX),
        }
        self.calls: list[str] = []
        """What was called, since the last `count_from_here`."""
        self.fail_at: frozenset[int] = frozenset()
        """Indexes of the calls that raise InjectedError."""
        self.fail_with = errno.EIO
        self.on_call: Callable[[str], None] = lambda _: None
        """Called before each call: for what others do at that very moment."""
        self.rulesets: dict[int, tuple[DevfsRule, ...]] = {}
        self._lock = threading.RLock()
        self._mounts = MountTable(scratch)
        self._jails = JailTable(cpus, self._mounts.directory)
        self._files = MountedFiles(self._mounts)
        self._rules: list[rctl.Rule] = []
        self.interface_counters: list[InterfaceUsage] = []
        """Of the node's network stack."""
        self._usage: dict[str, dict[str, int]] = {}
        self._roots: dict[FakeJail, FakeMount] = {}
        self._applied: list[tuple[FakeMount, tuple[DevfsRule, ...]]] = []
        self.racct = True
        self._booted = set(self._mounts.all)

    # -- for tests

    @property
    def racct(self) -> bool:
        """Whether kern.racct.enable is 1."""
        return self.sysctls["kern.racct.enable"] != _integer(0)

    @racct.setter
    def racct(self, enabled: bool) -> None:
        self.sysctls["kern.racct.enable"] = _integer(int(enabled))

    @property
    def linger(self) -> int:
        """For how many looks at the jails one that was removed is seen dying."""
        return self._jails.linger

    @linger.setter
    def linger(self, looks: int) -> None:
        self._jails.linger = looks

    def count_from_here(self, *fail_at: int, fail_with: int = errno.EIO) -> None:
        """Start counting calls anew, and let some of them fail."""
        with self._lock:
            self.calls.clear()
            self.fail_at, self.fail_with = frozenset(fail_at), fail_with

    def state(self) -> dict[str, object]:
        """Everything that exists, to be compared with what existed before or after."""
        with self._lock:
            applied = {
                mount.mount.target: [rules for at, rules in self._applied if at is mount]
                for mount in self._mounts.all
            }
            return {
                "jails": [
                    (jail.as_seen(), sorted(jail.parameters.items()), sorted(jail.allowed), sorted(jail.cpus))
                    for jail in self._jails.all
                ],
                "processes": sorted((pid, one.jail.name) for pid, one in self._jails.processes.items()),
                "mounts": [mount.mount for mount in self._mounts.all],
                "devfs": {target: rules for target, rules in applied.items() if rules},
                "rulesets": dict(self.rulesets),
                "rctl": sorted(map(str, self._rules)),
            }

    def clean(self) -> bool:
        """Whether nothing is left of anybody but devfs rulesets: no jail, process, mount or limit."""
        with self._lock:
            return not (
                self._jails.all
                or self._jails.processes
                or self._rules
                or set(self._mounts.all) - self._booted
            )

    def jail(self, name: str) -> FakeJail:
        """The living jail of a name. Raises LookupError."""
        with self._lock:
            for jail in self._jails.all:
                if jail.name == name and not jail.dying:
                    return jail
            raise LookupError(name)

    def spawn(self, name: str, *, cpu_microseconds: int = 0, resident: int = 0, stuck: bool = False) -> int:
        """Have a process in a jail; its pid. KILL ends it, unless it is `stuck` in the kernel."""
        with self._lock:
            return self._jails.spawn(name, cpu_microseconds, resident, stuck=stuck)

    def end(self, pid: int) -> None:
        """Let a process end."""
        with self._lock:
            self._jails.end(pid)

    def hold(self, name: str) -> Callable[[], None]:
        """Refer to a jail, as a socket does that somebody was handed; call the result to let go of it."""
        jail = self.jail(name)
        jail.holds += 1
        held = [jail]

        def release() -> None:
            with self._lock:
                for one in held:
                    one.holds -= 1
                held.clear()
                self._jails.reap()

        return release

    def keep_busy(self, target: str, times: int) -> None:
        """Let unmounts of what is mounted at `target` fail with EBUSY, unless by force."""
        with self._lock:
            self._mounts.of(target).busy = times

    def use(self, name: str, **amounts: int) -> None:
        """Set what racct says of a jail, by resource."""
        with self._lock:
            self._usage.setdefault(name, {}).update(amounts)

    def shown(self, path: str) -> str:
        """The real file that a process sees at a path, through what is mounted there."""
        with self._lock:
            return self._mounts.shown(path)

    @property
    def files(self) -> MountedFiles:
        """The functions of `os`, for a process that sees what is mounted."""
        return self._files

    # -- jail(2)

    def jail_create(self, parameters: Mapping[str, JailValue]) -> int:
        """Make a jail."""
        with self._call(f"jail_create {parameters.get('name', '')}"):
            jid = self._jails.create(parameters, self._kinds())
            jail = self._jails.living(jid)
            assert jail is not None
            self._roots[jail] = self._mounts.of(jail.path)
            return jid

    def jail_update(self, jid: int, parameters: Mapping[str, JailValue]) -> None:
        """Change a jail."""
        with self._call(f"jail_update {jid}"):
            self._jails.update(jid, parameters, self._kinds())

    def jail_find(self, name: str, *, dying: bool = False) -> Jail | None:
        """Look a jail up."""
        with self._call(f"jail_find {name}"):
            return self._jails.find(name, dying=dying)

    def jails(self, *, dying: bool = False) -> list[Jail]:
        """List jails, by jid."""
        with self._call("jails"):
            return self._jails.seen(dying=dying)

    def jail_remove(self, jid: int) -> None:
        """Remove a jail and its children."""
        with self._call(f"jail_remove {jid}"):
            self._jails.remove(jid)

    def has_parameter(self, name: str) -> bool:
        """Whether there is such a jail parameter."""
        with self._call(f"has_parameter {name}"):
            return name in self._kinds()

    # -- nmount(2)

    def mount(self, kind: str, target: str, options: Mapping[str, str | None], flags: int = 0) -> None:
        """Mount."""
        with self._call(f"mount {kind} {target}"):
            self._mounts.add(kind, target, options, flags, self.modules)

    def unmount(self, mount: Mount, *, force: bool = False) -> None:
        """Unmount."""
        with self._call(f"unmount {mount.target}"):
            self._mounts.remove(mount.fsid, force=force, in_use=self._is_a_root)

    def mounts(self) -> list[Mount]:
        """List mounts."""
        with self._call("mounts"):
            return [mount.mount for mount in self._mounts.all]

    def mount_of(self, path: str) -> Mount:
        """The mount that a path lies on."""
        with self._call(f"mount_of {path}"):
            return self._mounts.of(path).mount

    # -- devfs(4)

    def devfs_ruleset(self, number: int, rules: Sequence[DevfsRule]) -> None:
        """Set a ruleset."""
        with self._call(f"devfs_ruleset {number}"):
            if not 1 <= number <= 0xFFFF:
                raise refuse(errno.EIO, subject=f"ruleset {number}")
            self.rulesets[number] = tuple(rules)

    def devfs_apply(self, target: str, rules: Sequence[DevfsRule]) -> None:
        """Apply rules to one devfs."""
        with self._call(f"devfs_apply {target}"):
            found = self._mounts.of(target)
            if found.mount.kind != "devfs":
                raise refuse(errno.ENOTTY, subject=target)
            self._applied.append((found, tuple(rules)))

    def devfs_refresh(self) -> None:
        """There are no terminals here."""
        with self._call("devfs_refresh"):
            pass

    # -- rctl(2)

    def rctl_add(self, rule: str) -> None:
        """Add a rule."""
        with self._rctl(f"rctl_add {rule}"):
            rctl.add(self._rules, rule)

    def rctl_remove(self, rule_filter: str) -> None:
        """Remove rules."""
        with self._rctl(f"rctl_remove {rule_filter}"):
            rctl.remove(self._rules, rctl.parse(rule_filter))

    def rctl_rules(self, rule_filter: str) -> list[str]:
        """List rules."""
        with self._rctl(f"rctl_rules {rule_filter}"):
            wanted = rctl.parse(rule_filter)
            return [str(rule) for rule in self._rules if wanted.matches(rule)]

    def rctl_usage(self, subject: str) -> dict[str, int]:
        """What a jail uses."""
        with self._rctl(f"rctl_usage {subject}"):
            wanted = rctl.parse(subject)
            if wanted.subject != "jail" or not wanted.name:
                raise refuse(errno.EINVAL, subject=subject)
            return dict.fromkeys(rctl.RESOURCES, 0) | self._usage.get(wanted.name, {})

    # -- cpuset(2), sysctl(3), modfind(2)

    def jail_cpus(self, jid: int, cpus: Collection[int]) -> None:
        """Set the CPUs of a jail."""
        with self._call(f"jail_cpus {jid}"):
            self._jails.set_cpus(jid, cpus)

    def jail_cpus_now(self, jid: int) -> set[int]:
        """The CPUs of a jail."""
        with self._call(f"jail_cpus_now {jid}"):
            return set(self._jails.cpus(jid))

    def sysctl(self, name: str) -> bytes:
        """Read a variable."""
        with self._call(f"sysctl {name}"):
            if name not in self.sysctls:
                raise refuse(errno.ENOENT, subject=name)
            return self.sysctls[name]

    def has_module(self, name: str) -> bool:
        """Whether a module is loaded."""
        with self._call(f"has_module {name}"):
            return name in self.modules

    def process_start(self, pid: int) -> str | None:
        """When a process was started: its number stands for that, as none is used twice here."""
        with self._call("process_start"):
            return f"{pid}.000000" if pid in self._jails.processes else None

    def processes(self, jids: Collection[int]) -> list[Process]:
        """The processes of some jails."""
        with self._call("processes"):
            return self._jails.processes_of(jids)

    def interfaces(self) -> list[InterfaceUsage]:
        """What `interface_counters` has been set to."""
        with self._call("interfaces"):
            return list(self.interface_counters)

    # -- inside

    @contextlib.contextmanager
    def _call(self, what: str) -> Iterator[None]:
        with self._lock:
            index = len(self.calls)
            self.calls.append(what)
            if index in self.fail_at:
                raise InjectedError(
                    self.fail_with, f"injected at call {index}: {os.strerror(self.fail_with)}", what
                )
            self.on_call(what)
            yield

    @contextlib.contextmanager
    def _rctl(self, what: str) -> Iterator[None]:
        with self._call(what):
            if not self.racct:
                raise refuse(errno.ENOSYS, subject=what)
            yield

    def _kinds(self) -> dict[str, Kind]:
        return {name: kind for name, kind in known(self.modules).items() if name not in self.missing}

    def _is_a_root(self, mount: FakeMount) -> bool:
        """Whether a jail, be it dying, has its root on a mount."""
        return any(self._roots.get(jail) is mount for jail in self._jails.all)


def _integer(value: int) -> bytes:
    return struct.pack("=i", value)
