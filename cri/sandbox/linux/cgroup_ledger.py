"""Which cgroups are ours, on disk before they are made: the kubelet's groups hold others' too.

<state>/cgroups/<container>     JSON of its sandbox's id and its group's path

Only the next daemon reads it: where a container's group is, its spec says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import structlog

from cri.sandbox import durable, small_files
from cri.sandbox.host import HostError
from cri.sandbox.linux.cgroup_hierarchies import Hierarchies, own_parent
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.spec import ContainerSpec

log = structlog.get_logger(__name__)

_KILL_SECONDS = 5.0


def cgroup_path(spec: ContainerSpec) -> str:
    """The cgroup of a container."""
    return f"{spec.limits_parent or own_parent(spec.sandbox_id)}/{spec.id}"


def container_group(hierarchies: Hierarchies, spec: ContainerSpec) -> Group:
    """The group with a container's limits."""
    return _group(hierarchies, cgroup_path(spec), spec.sandbox_id, spec.id)


def _group(hierarchies: Hierarchies, path: str, sandbox_id: str, container_id: str) -> Group:
    return hierarchies.group(path, f"{own_parent(sandbox_id)}/{container_id}")


@dataclass(frozen=True, slots=True)
class Entry:
    """The cgroup of a container; "" if that cannot be read any more."""

    container_id: str
    path: str
    sandbox_id: str


class CgroupLedger:
    """The ledger. Its methods block and raise HostError."""

    def __init__(self, directory: Path, hierarchies: Hierarchies) -> None:
        self._directory = directory
        self._hierarchies = hierarchies
        directory.mkdir(exist_ok=True, mode=0o700)

    def add(self, spec: ContainerSpec) -> None:
        """Note the cgroup of a container."""
        note = json.dumps([spec.sandbox_id, cgroup_path(spec)])
        try:
            small_files.write(self._directory / spec.id, note.encode("ascii"))
        except OSError as error:
            raise _failed("note the cgroup of", f"container {spec.id}", error) from error

    def entries(self) -> list[Entry]:
        """All of them."""
        try:
            names = [path.name for path in self._directory.iterdir()]
        except OSError as error:
            raise _failed("read", str(self._directory), error) from error
        return [Entry(name, *self._content(name)) for name in names if not name.startswith(".")]

    def remove(self, spec: ContainerSpec) -> None:
        """KILL what is in a container's cgroups, remove them, and forget them."""
        self.remove_entry(Entry(spec.id, cgroup_path(spec), spec.sandbox_id))

    def remove_entry(self, entry: Entry) -> None:
        """The same, where no more is known."""
        path = entry.path
        group = _group(self._hierarchies, path, entry.sandbox_id, entry.container_id) if path else None
        if group is not None and group.is_there():
            if not group.kill_and_wait(_KILL_SECONDS):
                pids = ", ".join(map(str, sorted(group.processes())))
                raise HostError(
                    "end", f"container {entry.container_id}", f"processes {pids} cannot be killed"
                )
            group.remove()
        try:
            durable.remove_any(self._directory / entry.container_id)
        except OSError as error:
            # It names a group that is not there: harmless, and gone over at the next start.
            log.warning("a note of a removed cgroup stays", container=entry.container_id, error=str(error))

    def _content(self, name: str) -> tuple[str, str]:
        """Path and sandbox; nothing, if it cannot be read."""
        try:
            sandbox_id, path = json.loads(small_files.read(self._directory / name))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            log.error("which cgroup a container had cannot be read", container=name, error=str(error))
            return "", ""
        ours = isinstance(path, str) and isinstance(sandbox_id, str) and path.endswith(f"/{name}")
        return (path, sandbox_id) if ours else ("", "")


def _failed(operation: str, subject: str, error: OSError) -> HostError:
    return HostError(operation, subject, error.strerror or str(error), error.errno)
