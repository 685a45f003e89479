"""Which cgroups are ours, on disk before they are made: the kubelet's groups hold others' too.

<state>/cgroups/<sandbox>/<container>   JSON of the group's path

By sandbox, so that what a pod's end needs is found without reading what the node has.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from cri.sandbox import small_files
from cri.sandbox.host import HostError
from cri.sandbox.linux.cgroups import Hierarchies
from cri.sandbox.spec import ContainerSpec

log = structlog.get_logger(__name__)

OWN_PARENT = "/cri-jails"
"""The cgroup for pods that the kubelet made none for."""
_KILL_SECONDS = 5.0


def own_parent(sandbox_id: str) -> str:
    """The cgroup of a pod that the kubelet made none for."""
    return f"{OWN_PARENT}/{sandbox_id}"


def cgroup_path(spec: ContainerSpec) -> str:
    """The cgroup of a container."""
    return f"{spec.limits_parent or own_parent(spec.sandbox_id)}/{spec.id}"


@dataclass(frozen=True, slots=True)
class Entry:
    """The cgroup of a container."""

    sandbox_id: str
    container_id: str
    path: str


class CgroupLedger:
    """The ledger. Its methods block and raise HostError."""

    def __init__(self, directory: Path, hierarchies: Hierarchies) -> None:
        self._directory = directory
        self._hierarchies = hierarchies
        directory.mkdir(exist_ok=True, mode=0o700)
        self._sort()

    def add(self, spec: ContainerSpec) -> None:
        """Note the cgroup of a container."""
        place = self._directory / spec.sandbox_id
        try:
            place.mkdir(exist_ok=True, mode=0o700)
            small_files.write(place / spec.id, json.dumps(cgroup_path(spec)).encode("ascii"))
        except OSError as error:
            raise _failed("note the cgroup of", spec.id, error) from error

    def entries(self) -> list[Entry]:
        """All of them."""
        with _reading(self._directory):
            return [entry for place in self._directory.iterdir() for entry in self._entries(place)]

    def of_sandbox(self, sandbox_id: str) -> list[Entry]:
        """Those of one pod."""
        return list(self._entries(self._directory / sandbox_id))

    def remove(self, spec: ContainerSpec) -> None:
        """KILL what is in a container's cgroups, remove them, and forget them."""
        self.remove_entry(Entry(spec.sandbox_id, spec.id, cgroup_path(spec)))

    def remove_entry(self, entry: Entry) -> None:
        """The same, where no more is known."""
        group = self._hierarchies.group(entry.path)
        if not group.kill_and_wait(_KILL_SECONDS):
            pids = ", ".join(map(str, sorted(group.processes())))
            raise HostError("end", f"container {entry.container_id}", f"processes {pids} cannot be killed")
        group.remove()
        place = self._directory / entry.sandbox_id
        try:
            (place / entry.container_id).unlink(missing_ok=True)
        except OSError as error:
            # It names a group that is not there: harmless, and gone over at the next start.
            log.warning("a note of a removed cgroup stays", container=entry.container_id, error=str(error))
        with contextlib.suppress(OSError):  # not empty: the pod has other containers
            place.rmdir()

    def _entries(self, place: Path) -> Iterator[Entry]:
        try:
            names = [path.name for path in place.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _failed("read", str(place), error) from error
        for name in names:
            if not name.startswith("."):
                yield Entry(place.name, name, self._path(place, name))

    def _path(self, place: Path, name: str) -> str:
        try:
            path = json.loads(small_files.read(place / name))
        except (OSError, ValueError, RecursionError) as error:
            log.error("which cgroup a container has cannot be read", container=name, error=str(error))
            path = None
        return (
            path
            if isinstance(path, str) and path.endswith(f"/{name}")
            else f"{own_parent(place.name)}/{name}"
        )

    def _sort(self) -> None:
        """Bring the notes of the first release, which are all in one directory, to their places."""
        for path in self._notes_of_all():
            try:
                sandbox_id, cgroup = map(str, json.loads(small_files.read(path)))
                place = self._directory / Path(sandbox_id).name
                place.mkdir(exist_ok=True, mode=0o700)
                small_files.write(place / path.name, json.dumps(cgroup).encode("ascii"))
                path.unlink()
            except (OSError, ValueError, TypeError, RecursionError) as error:
                log.error(
                    "a note of a cgroup cannot be read; it is left alone", note=str(path), error=str(error)
                )

    def _notes_of_all(self) -> Iterable[Path]:
        with _reading(self._directory):
            return [path for path in self._directory.iterdir() if not path.is_dir()]


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failed("read", str(directory), error) from error


def _failed(operation: str, subject: str, error: OSError) -> HostError:
    return HostError(operation, subject, error.strerror or str(error), error.errno)
