"""Trees of cgroups whose lower part containers may have made: of any depth, and changing meanwhile.

Everything is reached by descriptors, of which a few are open at a time: neither the stack, nor paths, nor descriptors run out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from cri.sandbox.host import HostError
from cri.sandbox.linux import cgroup_files
from cri.sandbox.linux.cgroup_files import failed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEAF = 2
"""Links of a directory that has none below it, in kernfs."""
_GONE = (errno.ENOENT, errno.ENODEV)
_REMOVE_PAUSES = (0.0002, 0.0005, 0.001, 0.002, 0.005, *([0.01] * 50))
"""Seconds. A process that has just ended still counts for a moment."""


def walk(top: str) -> Iterator[int]:
    """Every group of a tree, open until the next one is asked for; those below before those above. None if it is gone.

    Raises HostError. A group cannot be moved to another parent, so `..` is where we come from.
    """
    return (group for group, _ in _walk(top))


def paths(top: str) -> list[str]:
    """Of the groups below one; those below before those above. Raises HostError."""
    return ["/".join((top, *names)) for _, names in _walk(top) if names]


def _walk(top: str) -> Iterator[tuple[int, list[str]]]:
    names: list[str] = []
    try:
        at = os.open(top, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        waiting = [_below(at)]
        while True:
            if waiting[-1]:
                name = waiting[-1].pop()
                with contextlib.suppress(FileNotFoundError):
                    at = _exchange(at, name)
                    waiting.append(_below(at))
                    names.append(name)
                continue
            yield at, names
            waiting.pop()
            if not waiting:
                return
            names.pop()
            at = _exchange(at, "..")
    except OSError as error:
        raise failed("look through", top, error) from error
    finally:
        os.close(at)


def processes(top: str) -> Iterator[int]:
    """All processes in a tree. Raises HostError."""
    for group in walk(top):
        yield from processes_of(group, top)


def processes_of(group: int, top: str) -> list[int]:
    """Those in one group, an open one, of a tree. Raises HostError."""
    try:
        with os.fdopen(os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group), "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError as error:
        # Of threaded groups the one above them has the processes (cgroup-v2.rst, "Threads").
        if error.errno not in (*_GONE, errno.EOPNOTSUPP):
            raise failed("read", top, error) from error
        return []


def total(top: str, file: str, name: str) -> int:
    """The sum of what a file of names and numbers has for one of them, over a tree. Raises HostError."""
    return sum(cgroup_files.fields(file, group).get(name, 0) for group in walk(top))


def thaw(top: str) -> None:
    """Let everything in a tree of the `freezer` go on: what is frozen dies of no signal (freezer-subsystem.rst)."""
    for group in walk(top):
        try:
            cgroup_files.write("freezer.state", "THAWED", group)
        except HostError as error:
            if error.errno not in _GONE:
                raise


def remove(top: str) -> None:
    """Remove a tree; one that is gone is fine. Raises HostError, if processes are in it."""
    for group in walk(top):
        for name in _below(group):
            _rmdir(name, top, group)
    _rmdir(top, top)


def _below(group: int) -> list[str]:
    """The names of the groups in one."""
    try:
        if os.fstat(group).st_nlink == _LEAF:
            return []
        with os.scandir(group) as found:
            return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []  # it is being removed


def _exchange(group: int, name: str) -> int:
    """Open another one from here, and let go of this."""
    other = os.open(name, _DIRECTORY, dir_fd=group)
    os.close(group)
    return other


def _rmdir(name: str, top: str, group: int | None = None) -> None:
    path = f"{top}/.../{name}" if group is not None else top
    for pause in _REMOVE_PAUSES:
        try:
            os.rmdir(name, dir_fd=group)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise failed("remove", path, error) from error
            time.sleep(pause)
        else:
            return
    raise HostError("remove", f"cgroup {path}", "it still has processes", errno.EBUSY)
