"""Mounts as sys/kern/vfs_mount.c and the filesystems have them.

They hide nothing from the rest of the machine: what a process would see through them is told by `shown`, and `files` has
the functions of `os` that see it.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cri.sandbox.fake.freebsd.parameters import refuse
from cri.sandbox.freebsd.calls import MNT_NOEXEC, MNT_NOSUID, MNT_RDONLY, Mount

PATH_SIZE = 1024
"""MNAMELEN, with the NUL."""

_GLOBAL_OPTIONS = frozenset({"ro", "rw", "nosuid", "noexec", "suid", "exec", "errmsg"})
_OPTIONS: Mapping[str, frozenset[str]] = {
    "devfs": frozenset({"from", "ruleset", "export"}),
    "tmpfs": frozenset(
        {
            *("from", "size", "maxfilesize", "inodes", "easize", "uid", "gid", "mode", "export", "union"),
            *("nonc", "nomtime", "nosymfollow", "pgread"),
        }
    ),
}
"""Filesystems that look at their options; the others take any."""
_FLAGS = {"ro": MNT_RDONLY, "nosuid": MNT_NOSUID, "noexec": MNT_NOEXEC}
KINDS = frozenset({"nullfs", "tmpfs", "devfs", "fdescfs", "procfs", "linprocfs", "linsysfs"})
_CONTENT: Mapping[str, tuple[str, ...]] = {
    "devfs": ("fd/", "pts/", "shm/", "null", "zero", "tty"),
    "linprocfs": ("sys/kernel/", "cpuinfo"),
    "linsysfs": ("class/",),
}
"""What is in a new filesystem: some of it; directories end in a slash."""
_MAX_LINKS = 32


@dataclass(eq=False)
class FakeMount:
    """A mount, and the files that it stands on. A file is a mount (None is what is really there) and a path."""

    mount: Mount
    covers: tuple[FakeMount | None, str]
    """The file that it hides."""
    lower: tuple[FakeMount | None, str] | None = None
    """The file that a nullfs shows."""
    backing: str = ""
    """The directory that holds what else is in it."""
    busy: int = 0
    """How many more unmounts fail."""

    def __post_init__(self) -> None:
        self._prefix = f"{self.mount.target.rstrip('/')}/"

    def holds(self, path: str) -> bool:
        """Whether a path is the mount's own, or below it."""
        return path.startswith(self._prefix) or path == self.mount.target


class MountTable:
    """All mounts, in the order in which they were made."""

    def __init__(self, scratch: Path | None) -> None:
        """The content of filesystems other than nullfs is kept below `scratch`; without it they show what they hide."""
        self.all: list[FakeMount] = []
        self._scratch = scratch
        self._serials = itertools.count(1)
        for kind, source, target in (("ufs", "/dev/ada0p2", "/"), ("devfs", "devfs", "/dev")):
            self.all.append(FakeMount(Mount(self._fsid(), kind, source, target), (None, target)))

    def add(
        self, kind: str, target: str, options: Mapping[str, str | None], flags: int, modules: Collection[str]
    ) -> FakeMount:
        """nmount(2)."""
        if len(os.fsencode(target)) >= PATH_SIZE:
            raise refuse(errno.ENAMETOOLONG, subject=target)
        if kind not in KINDS or kind not in modules:
            # ENODEV inside of the kernel; vfs_donmount() tells it so.
            raise refuse(errno.EINVAL, "Invalid fstype", kind)
        covers = self.lookup(target)
        found = self._stat(target)
        self._check_covered(kind, covers, found)
        self._check_options(kind, options)
        for option in options:
            flags |= _FLAGS.get(option, 0)
        lower = None
        source = kind
        if kind == "nullfs":
            source = options.get("from") or options.get("target") or ""
            lower = self.lookup(source)
            self._check_nullfs(source, target, lower, covers, found.st_mode)
        made = FakeMount(Mount(self._fsid(), kind, source, covers[1], flags), covers, lower)
        if lower is None and self._scratch is not None:
            made.backing = self._fill(kind, self._scratch / str(made.mount.fsid[0]))
        self.all.append(made)
        return made

    def remove(self, fsid: tuple[int, int], *, force: bool, in_use: Callable[[FakeMount], bool]) -> None:
        """unmount(2) with MNT_BYFSID. `in_use` tells whether a jail or a process has its root on a mount."""
        found = next((one for one in self.all if one.mount.fsid == fsid), None)
        if found is None:
            raise refuse(errno.ENOENT, subject=str(fsid))
        target = found.mount.target
        if any(other.lower is not None and other.lower[0] is found for other in self.all):
            # A nullfs shows it: not even by force.
            raise refuse(errno.EBUSY, subject=target)
        if not force and (any(other.covers[0] is found for other in self.all) or in_use(found)):
            raise refuse(errno.EBUSY, subject=target)
        if found.busy and not force:
            found.busy -= 1
            raise refuse(errno.EBUSY, subject=target)
        # By force, what is mounted below stays in the list, though no path leads there.
        self.all.remove(found)
        if found.backing:
            shutil.rmtree(found.backing)

    def of(self, path: str) -> FakeMount:
        """The mount that a path lies on."""
        found = self.lookup(path)[0]
        assert found is not None
        return found

    def lookup(self, path: str) -> tuple[FakeMount | None, str]:
        """The file at a path, links followed: the mount it is on, and its path. ENOENT, ENOTDIR, ELOOP."""
        pending = path.split("/")[::-1]
        found = "/"
        links = 0
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            if name == "..":
                found = os.path.dirname(found)  # noqa: PTH120
                continue
            below = f"{found.rstrip('/')}/{name}"
            real = self.real(below)
            mode = os.lstat(real).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise refuse(errno.ELOOP, subject=path)
                target = os.readlink(real)  # noqa: PTH115
                pending += target.split("/")[::-1]
                found = "/" if target.startswith("/") else found
            elif pending and not stat.S_ISDIR(mode):
                raise refuse(errno.ENOTDIR, subject=path)
            else:
                found = below
        return self.covering(found), found

    def covering(self, path: str) -> FakeMount | None:
        """The mount that a path without links lies on: the last one made at it or above."""
        for one in reversed(self.all):
            if one.holds(path):
                return one
        return None

    def real(self, path: str) -> str:
        """Where the file is really that a path without links leads to."""
        return self._real(self.covering(path), path)

    def shown(self, path: str) -> str:
        """The real file that is seen at a path."""
        return self._real(*self.lookup(path))

    def directory(self, path: str) -> str:
        """The path of a directory, links followed. ENOENT, ENOTDIR."""
        found = self.lookup(path)
        if not stat.S_ISDIR(os.stat(self._real(*found)).st_mode):  # noqa: PTH116
            raise refuse(errno.ENOTDIR, subject=path)
        return found[1]

    # -- inside

    def _fsid(self) -> tuple[int, int]:
        return next(self._serials), 0x2D

    @staticmethod
    def _fill(kind: str, backing: Path) -> str:
        backing.mkdir(parents=True)
        for name in _CONTENT.get(kind, ()):
            if name.endswith("/"):
                (backing / name).mkdir(parents=True)
            else:
                (backing / name).touch()
        return str(backing)

    def _real(self, mount: FakeMount | None, path: str) -> str:
        """Where a file of one mount is, whatever is mounted below that."""
        while mount is not None and (mount.lower is not None or mount.backing):
            inside = path.removeprefix(mount.mount.target)
            if mount.lower is None:
                return mount.backing + inside
            mount, source = mount.lower
            path = source + inside
        return path

    def _stat(self, path: str) -> os.stat_result:
        return os.stat(self.shown(path))  # noqa: PTH116

    @staticmethod
    def _check_options(kind: str, options: Mapping[str, str | None]) -> None:
        for option in options:
            legal = _OPTIONS.get(kind)
            if legal is not None and option not in legal | _GLOBAL_OPTIONS:
                raise refuse(errno.EINVAL, f"mount option <{option}> is unknown", kind)
        ruleset = options.get("ruleset")
        if (
            kind == "devfs"
            and ruleset is not None
            and not (re.fullmatch(r"\d+", ruleset) and int(ruleset) <= 0xFFFF)
        ):
            raise refuse(errno.EINVAL, "invalid ruleset specification", kind)

    @staticmethod
    def _check_covered(kind: str, covers: tuple[FakeMount | None, str], found: os.stat_result) -> None:
        """A directory; for a nullfs also a file, if it has no other name, and is not covered yet."""
        mount, path = covers
        if stat.S_ISDIR(found.st_mode):
            return
        if mount is not None and mount.mount.target == path:
            raise refuse(errno.EBUSY, subject=path)
        if kind != "nullfs":
            raise refuse(errno.ENOTDIR, subject=path)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise refuse(errno.EINVAL, subject=path)

    def _check_nullfs(
        self,
        source: str,
        target: str,
        lower: tuple[FakeMount | None, str],
        covers: tuple[FakeMount | None, str],
        mode: int,
    ) -> None:
        mount, path = covers
        if mount is not None and mount.lower is not None:
            below, shown = mount.lower
            if lower == (below, shown + path.removeprefix(mount.mount.target)):
                raise refuse(errno.EDEADLK, subject=target)
        kind = stat.S_IFMT(self._stat(source).st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG) or kind != stat.S_IFMT(mode):
            raise refuse(errno.EINVAL, subject=f"{source} on {target}")
