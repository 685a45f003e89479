"""What the processes of a container are and hold, out of proc(5). Bounded: a container may have as many as it likes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

from cri.sandbox.linux import cgroup_files, cgroup_tree

MOST_GROUPS = 64
"""Groups that are looked through; containers that make groups of their own may have any number."""
MOST_PROCESSES = 64
MOST_DESCRIPTORS = 1024
"""What is looked at of one container for open files; if there are more, their number is not told."""


def processes(top: str) -> list[int] | None:
    """The processes of a group and those below it; None if that would take long. Raises HostError."""
    found: list[int] = []
    for number, group in enumerate(cgroup_tree.walk(top)):
        if number == MOST_GROUPS:
            return None
        found += cgroup_tree.processes_of(group, top)
    return found


def oom_kills(top: str) -> int:
    """What the OOM killer has killed in a group of version 1 and in those below it, as far as they are looked through.

    Raises HostError.
    """
    groups = islice(cgroup_tree.walk(top), MOST_GROUPS)
    return sum(cgroup_files.fields("memory.oom_control", group).get("oom_kill", 0) for group in groups)


def descriptors(pids: Iterable[int]) -> tuple[int, int] | None:
    """How many descriptors processes have open, and how many of these are sockets; None if that would take long."""
    opened = sockets = 0
    for number, pid in enumerate(pids):
        if number == MOST_PROCESSES:
            return None
        try:
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        sockets += os.readlink(entry.name, dir_fd=directory).startswith("socket:")
                    except FileNotFoundError:
                        continue  # it was closed
                    opened += 1
                    if opened > MOST_DESCRIPTORS:
                        return None
        except ProcessLookupError:
            continue
        finally:
            os.close(directory)
    return opened, sockets
