"""A kernel's jails and processes in memory, as jail(2) has them.

The rules are FreeBSD's, since its life cycles are the product: a name is taken by a living *or dying* jail (EEXIST); a
jail dies only when its last socket is closed; a child needs room in its parent's children.max and asks for less than
its parent has (EPERM); a child inside a VNET jail cannot have a vnet of its own here; removing a jail kills what runs
in it and in its children; attaching to what is gone is EINVAL.

Every call counts, and can be told to fail: that is how undo is tested at every single step.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


class InjectedError(OSError):
    """The failure that a test asked for."""


@dataclass(slots=True)
class FakeProcess:
    """A process in a jail."""

    pid: int
    jail: str
    argv: tuple[str, ...]
    on_exit: Callable[[int, int], None]
    """Called with exit code and signal."""
    ignores: frozenset[int] = frozenset()
    alive: bool = True


@dataclass(slots=True)
class FakeJail:
    """A jail. `name` is its full name; a child's is `parent.child`."""

    name: str
    vnet: bool
    children_max: int
    dying: bool = False
    sockets: int = 0
    mounts: list[str] = field(default_factory=list)

    @property
    def parent(self) -> str:
        """The parent's name, or empty for the host."""
        return self.name.rpartition(".")[0]


class FakeKernel:
    """The state of one machine, and the system calls that change it. They raise OSError as the kernel would."""

    def __init__(self) -> None:
        self.jails: dict[str, FakeJail] = {}
        self.processes: dict[int, FakeProcess] = {}
        self.calls: list[str] = []
        self.fail_at: int | None = None
        """Index of the call that raises InjectedError (counted from the last `count_from_here`)."""
        self._pids = itertools.count(1000)

    # -- for tests

    def count_from_here(self, fail_at: int | None = None) -> None:
        """Start counting calls anew, and let one of them fail."""
        self.calls.clear()
        self.fail_at = fail_at

    def clean(self) -> bool:
        """Whether nothing is left of anybody."""
        return not self.jails and not self.processes

    # -- jail(2)

    def jail_set(self, name: str, *, vnet: bool = False, children_max: int = 0) -> None:
        """Create a persistent jail."""
        self._call(f"jail_set {name}")
        last = name.rpartition(".")[2]
        if not last or last.isdigit():
            raise OSError(errno.EINVAL, f"name {last!r} would be taken for a jid")
        if name in self.jails:
            raise OSError(errno.EEXIST, f"jail {name!r} already exists")
        jail = FakeJail(name, vnet, children_max)
        if jail.parent:
            parent = self._living(jail.parent)
            siblings = sum(1 for other in self.jails.values() if other.parent == parent.name)
            if siblings >= parent.children_max or children_max >= parent.children_max:
                raise OSError(errno.EPERM, f"children.max of {parent.name!r} is {parent.children_max}")
            if vnet and parent.vnet:
                raise OSError(errno.EPERM, "vnet jails cannot create vnet jails here")
        self.jails[name] = jail

    def jail_remove(self, name: str) -> None:
        """Kill everything in a jail and its children; they are gone when their last socket is closed."""
        self._call(f"jail_remove {name}")
        self._living(name)
        for doomed in [
            other for other in self.jails.values() if other.name == name or other.name.startswith(name + ".")
        ]:
            doomed.dying = True
            for process in list(self._in(doomed.name)):
                self._end(process, 9)
            self._reap(doomed)

    # -- sockets, mounts

    def socket(self, jail: str) -> Callable[[], None]:
        """Make a socket in a jail; call the result to close it."""
        self._call(f"socket {jail}")
        owner = self._living(jail)
        owner.sockets += 1
        closed = False

        def close() -> None:
            nonlocal closed
            if not closed:
                closed = True
                owner.sockets -= 1
                self._reap(owner)

        return close

    def mount(self, jail: str, target: str) -> None:
        """Mount something for a jail."""
        self._call(f"mount {target}")
        self._living(jail).mounts.append(target)

    def unmount(self, jail: str, target: str) -> None:
        """Unmount it again."""
        self._call(f"unmount {target}")
        mounts = self._living(jail).mounts
        if target not in mounts:
            raise OSError(errno.EINVAL, f"{target} is not mounted")
        mounts.remove(target)

    # -- processes

    def spawn(self, jail: str, argv: tuple[str, ...], on_exit: Callable[[int, int], None]) -> int:
        """Fork, attach, exec; the pid.

        Programs: `true`, `false`, `exit N`, `sleep` (for ever), `stubborn` (for ever, ignoring TERM), `cat` (until its
        warden ends it by `exit`); anything else is ENOENT.
        """
        self._call(f"spawn {argv[0]}")
        if jail not in self.jails or self.jails[jail].dying:
            raise OSError(errno.EINVAL, f"no jail {jail!r} to attach to")
        if argv[0] not in {"true", "false", "exit", "sleep", "stubborn", "cat"}:
            raise OSError(errno.ENOENT, f"{argv[0]}: no such file or directory")
        ignores = frozenset({15}) if argv[0] == "stubborn" else frozenset()
        process = FakeProcess(next(self._pids), jail, argv, on_exit, ignores)
        self.processes[process.pid] = process
        codes = {"true": 0, "false": 1, "exit": int(argv[1]) if argv[0] == "exit" else 0}
        if argv[0] in codes:
            self._end(process, 0, codes[argv[0]])
        return process.pid

    def exit(self, pid: int, code: int) -> None:
        """A process ends by itself."""
        if (process := self.processes.get(pid)) is not None:
            self._end(process, 0, code)

    def kill(self, pid: int, signal: int) -> None:
        """Send a signal."""
        self._call(f"kill {signal}")
        process = self.processes.get(pid)
        if process is None:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        if signal not in process.ignores:
            self._end(process, signal)

    def kill_all(self, jail: str) -> None:
        """KILL everything in a jail, as a process in it does with kill(-1)."""
        self._call(f"kill_all {jail}")
        for process in list(self._in(jail)):
            self._end(process, 9)

    # -- inside

    def _call(self, what: str) -> None:
        index = len(self.calls)
        self.calls.append(what)
        if index == self.fail_at:
            raise InjectedError(errno.EIO, f"injected at call {index}: {what}")

    def _living(self, name: str) -> FakeJail:
        jail = self.jails.get(name)
        if jail is None or jail.dying:
            raise OSError(errno.ENOENT, f"jail {name!r} not found")
        return jail

    def _in(self, jail: str) -> Iterator[FakeProcess]:
        return (process for process in self.processes.values() if process.jail == jail)

    def _end(self, process: FakeProcess, signal: int, code: int = 0) -> None:
        if process.alive:
            process.alive = False
            del self.processes[process.pid]
            process.on_exit(128 + signal if signal else code, signal)

    def _reap(self, jail: FakeJail) -> None:
        if jail.dying and not jail.sockets and not jail.mounts:
            self.jails.pop(jail.name, None)
