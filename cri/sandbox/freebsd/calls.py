"""The kernel as the FreeBSD driver sees it: `kernel` makes these calls, `cri.sandbox.fake.freebsd` imitates them.

Only what the daemon does from outside of a jail is here; what a process does on its way into one is in `kernel` alone.
Every call blocks and raises OSError with the kernel's errno; `strerror` is the kernel's own text where it gives one
(jail(2) and nmount(2) have an errmsg), `filename` the object.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cri.sandbox.usage import InterfaceUsage

JailValue = int | str | bool
"""A boolean is given by presence: False is the name with `no` before its last component (allow.nomount)."""

DISABLE, NEW, INHERIT = 0, 1, 2
"""Values of the jailsys parameters: vnet, host, ip4, ip6, sysvmsg, sysvsem, sysvshm, linux (jail(8))."""

MNT_RDONLY = 0x1
MNT_NOEXEC = 0x4
MNT_NOSUID = 0x8
MNT_IGNORE = 0x0080_0000
"""Flags of mount(2) (sys/mount.h); df(1) does not show what is ignored."""


@dataclass(frozen=True, slots=True)
class Jail:
    """A jail, alive or dying."""

    jid: int
    name: str
    """From the caller's jail downwards, with dots: `pod.container`."""
    path: str
    dying: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem, of getfsstat(2)."""

    fsid: tuple[int, int]
    kind: str
    source: str
    target: str
    """Where it is, links resolved, from the caller's root."""
    flags: int = 0


@dataclass(frozen=True, slots=True)
class DevfsRule:
    """A rule of devfs(8): what happens to the nodes that `path` matches; every node, if it is empty."""

    path: str = ""
    hide: bool | None = None
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A process of some jail, of sysctl kern.proc."""

    pid: int
    jid: int
    cpu_microseconds: int = 0
    """Its own, and that of the children it has waited for."""
    resident: int = 0
    """Bytes."""
    system_microseconds: int = 0
    """What of that was spent in the kernel."""
    threads: int = 1
    minor_faults: int = 0
    major_faults: int = 0
    """Likewise, of page faults."""


class Calls(Protocol):
    """The calls."""

    # jail(2)

    def jail_create(self, parameters: Mapping[str, JailValue]) -> int:
        """Make a jail; its jid. `name` says where: `a.b` is a child of `a`. EEXIST, EPERM, ENOENT, EINVAL."""

    def jail_update(self, jid: int, parameters: Mapping[str, JailValue]) -> None:
        """Change a jail. EPERM for what the own jail of the caller has not; ENOENT if it is gone."""

    def jail_find(self, name: str, *, dying: bool = False) -> Jail | None:
        """The jail of a name, None if there is none. One that is dying counts only with `dying`."""

    def jails(self, *, dying: bool = False) -> list[Jail]:
        """Every jail below the caller's."""

    def jail_remove(self, jid: int) -> None:
        """KILL everything in a jail and its children; they are dying when this returns. EINVAL if it is gone."""

    def has_parameter(self, name: str) -> bool:
        """Whether this kernel knows a jail parameter (sysctl security.jail.param)."""

    # nmount(2), unmount(2), getfsstat(2)

    def mount(self, kind: str, target: str, options: Mapping[str, str | None], flags: int = 0) -> None:
        """Mount a filesystem; an option whose value is None is a flag. `target` and option `from` exist."""

    def unmount(self, mount: Mount, *, force: bool = False) -> None:
        """Take a mount away, by its fsid. EBUSY; EINVAL or ENOENT if it is gone."""

    def mounts(self) -> list[Mount]:
        """Every mount, in the order in which they were made."""

    def mount_of(self, path: str) -> Mount:
        """The mount that a path lies on: statfs(2). ENOENT."""

    # devfs(4): /dev/devfs ioctls, devfs(8) has the words

    def devfs_ruleset(self, number: int, rules: Sequence[DevfsRule]) -> None:
        """Make ruleset `number` hold just these rules. It is not noticed by mounts that were made with it before."""

    def devfs_apply(self, target: str, rules: Sequence[DevfsRule]) -> None:
        """Apply rules once to the devfs that is mounted at `target`."""

    def devfs_refresh(self) -> None:
        """Have every devfs let go of terminals that are gone: one keeps the jail dying that it was made in."""

    # rctl(2), racct

    def rctl_add(self, rule: str) -> None:
        """Add a rule, `jail:NAME:resource:action=amount`. ENOSYS without kern.racct.enable=1."""

    def rctl_remove(self, rule_filter: str) -> None:
        """Remove what matches; succeeds if nothing does. ENOSYS."""

    def rctl_rules(self, rule_filter: str) -> list[str]:
        """The rules that match. ENOSYS."""

    def rctl_usage(self, subject: str) -> dict[str, int]:
        """What a subject, `jail:NAME:`, uses now, by resource; bytes, seconds, percent. ENOSYS; ESRCH if it is gone."""

    # cpuset(2)

    def jail_cpus(self, jid: int, cpus: Collection[int]) -> None:
        """Let a jail run on these CPUs only. EDEADLK or EINVAL if there is none of them; ESRCH."""

    def jail_cpus_now(self, jid: int) -> set[int]:
        """The CPUs that a jail may run on. ESRCH."""

    # sysctl(3), modfind(2)

    def sysctl(self, name: str) -> bytes:
        """A variable's bytes. ENOENT."""

    def has_module(self, name: str) -> bool:
        """Whether a kernel module is there, loaded or compiled in; names as kldstat -v shows them (`nullfs`, `linux64elf`)."""

    def process_start(self, pid: int) -> str | None:
        """When a process was started, to the microsecond (kern.proc.pid); None if it is gone or a zombie."""

    def processes(self, jids: Collection[int]) -> list[Process]:
        """The processes of these jails, without those of their children; zombies do not count."""

    # getifaddrs(3)

    def interfaces(self) -> list[InterfaceUsage]:
        """The counters of the interfaces of the caller's network stack, since each was made."""
