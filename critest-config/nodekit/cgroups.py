"""A cgroup subtree of the run's own, which it sees as the whole hierarchy (cgroups(7), cgroup_namespaces(7)).

So what is left in it can only be the run's, whatever else uses cgroups on the machine meanwhile. Works on
version 1, version 2, and both mounted together.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

# Where the run's own processes are. Not the root of the subtree: version 2 delegates controllers only
# from a cgroup that holds no process.
_HARNESS = "harness"


def enter(subtree: str, unshare: Callable[[], None], bind: Callable[[Path, Path], None]) -> None:
    """Move this process into SUBTREE of every hierarchy, and make that the hierarchy's root as we see it.

    UNSHARE must give us a cgroup and a mount namespace, BIND mount its first argument on its second.
    """
    hierarchies = _hierarchies()
    for hierarchy in hierarchies:
        _make(hierarchy / subtree)
        (hierarchy / subtree / "cgroup.procs").write_text(str(os.getpid()))
    unshare()  # what we are in now becomes the root of the cgroup namespace
    for hierarchy in hierarchies:
        _make(hierarchy / subtree / _HARNESS)
        (hierarchy / subtree / _HARNESS / "cgroup.procs").write_text(str(os.getpid()))
        bind(hierarchy / subtree, hierarchy)


def remove(subtree: str) -> set[str]:
    """Remove SUBTREE from all hierarchies and return the cgroups that the run had left in it."""
    left = set()
    for hierarchy in _hierarchies():
        top = hierarchy / subtree
        for directory in sorted(
            (Path(path) for path, _, _ in os.walk(top)), reverse=True
        ):  # the deepest first
            if directory not in (top, top / _HARNESS):
                left.add(str(directory))
            _rmdir(directory)
    return left


def _rmdir(cgroup: Path, seconds: float = 2.0) -> None:
    """Remove a cgroup whose last process has just ended: the kernel may take a moment to notice."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            cgroup.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _hierarchies() -> list[Path]:
    """Return where the cgroup hierarchies are mounted (proc_pid_mountinfo(5))."""
    mounts = (line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [Path(where.split()[4]) for where, what in mounts if what.split()[0] in {"cgroup", "cgroup2"}]


def _make(cgroup: Path) -> None:
    """Make a cgroup that processes can be moved into, with all controllers of its parent."""
    delegated = cgroup.parent / "cgroup.subtree_control"  # version 2
    if delegated.exists() and cgroup.name != _HARNESS:
        controllers = (cgroup.parent / "cgroup.controllers").read_text().split()
        delegated.write_text(" ".join(f"+{name}" for name in controllers))
    cgroup.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts them empty and then takes no process
        if delegated.exists() or not (cgroup / name).exists():
            continue
        (cgroup / name).write_text((cgroup.parent / name).read_text())
