"""What was mounted for a container, on disk, and how it is taken away again.

Mounts are the node's, and outlive the daemon: every one is noted as soon as it is made, with the mount point that was
made for it. A daemon that comes later unmounts what it finds below the container's directory, noted or not.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from baustelle.paths import remove_mount_target
from cri.sandbox.freebsd.calls import Calls, Mount
from cri.sandbox.host import HostError

FILE = "mounts.json"
_UNMOUNT_SECONDS = 2.0
_UNMOUNT_PAUSE = 0.02


@dataclass(slots=True)
class Entry:
    """A mount point."""

    tree: str
    """The root that it was made in."""
    target: str
    made: list[str]
    """What was made for it, relative to the tree, parents first."""
    fsid: list[int] | None = None
    """What is mounted there; None until it is."""


@dataclass(slots=True)
class Ledger:
    """The mount points of one container, in the order in which they were made."""

    directory: str
    """The container's."""
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def load(cls, directory: str) -> Ledger:
        """What was noted, nothing if a crash has torn it: what is not in it goes with the root."""
        try:
            return cls(directory, [Entry(**entry) for entry in json.loads(Path(directory, FILE).read_text())])
        except (FileNotFoundError, ValueError, TypeError):
            return cls(directory)

    def add(self, entry: Entry) -> None:
        """Note a mount point."""
        self.entries.append(entry)
        self._save()

    def mounted(self, mount: Mount) -> None:
        """Note what is mounted on the last mount point of its path."""
        for entry in reversed(self.entries):
            if entry.target == mount.target and entry.fsid is None:
                entry.fsid = list(mount.fsid)
                self._save()
                return

    def pop(self) -> None:
        """Forget the last mount point. If that cannot be written (a full disk), it will be looked at in vain once more."""
        self.entries.pop()
        with contextlib.suppress(OSError):
            self._save()

    def remove(self) -> None:
        """Forget all."""
        Path(self.directory, FILE).unlink(missing_ok=True)

    def _save(self) -> None:
        temporary = Path(self.directory, f".{FILE}.new")  # a full disk must not cost what is noted already
        # Without the container's directory there is nothing to be noted any more.
        with contextlib.suppress(FileNotFoundError):
            temporary.write_text(json.dumps([asdict(entry) for entry in self.entries]))
            temporary.rename(Path(self.directory, FILE))


def take_down(calls: Calls, directory: str, root: str, *, force: bool = False) -> None:
    """Unmount all that lies below a container's directory, but its root itself, and remove the mount points that were made.

    In the reverse order, one by one, as a mount point may lie in a volume that has to be there for its removal. Succeeds
    on what is gone. What stays busy for two seconds is taken away by force, or at once with `force`: no process of the
    container is left. Raises HostError; what was done by then need not be done again.
    """
    until = time.monotonic() + (0 if force else _UNMOUNT_SECONDS)
    ledger = Ledger.load(directory)
    mounts = [mount for mount in mounts_below(calls, directory) if not _is_root(mount, root)]
    while ledger.entries:
        entry = ledger.entries[-1]
        known = {tuple(other.fsid) for other in ledger.entries if other.fsid}
        own = [mount for mount in mounts if _belongs(mount, entry, known)]
        _unmount(calls, reversed(own), until)
        _remove_mount_point(entry)
        mounts = [mount for mount in mounts if mount not in own]
        ledger.pop()
    _unmount(calls, reversed(mounts), until)
    ledger.remove()


def mounts_below(calls: Calls, directory: str) -> list[Mount]:
    """The mounts on a directory and below it, in the order in which they were made."""
    return [mount for mount in calls.mounts() if f"{mount.target}/".startswith(f"{directory.rstrip('/')}/")]


def _belongs(mount: Mount, entry: Entry, known: Collection[tuple[int, ...]]) -> bool:
    """Whether an entry is about a mount: by fsid, or, if a crash came before that was noted, by its place."""
    if entry.fsid is not None:
        return mount.fsid == tuple(entry.fsid)
    return mount.target == entry.target and mount.fsid not in known


def _is_root(mount: Mount, root: str) -> bool:
    """Whether a mount is the snapshotter's, which takes it away itself."""
    return mount.target == root and mount.kind == "zfs"


def _unmount(calls: Calls, mounts: Iterable[Mount], until: float) -> None:
    for mount in mounts:
        while True:
            force = time.monotonic() >= until
            try:
                calls.unmount(mount, force=force)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    break  # somebody else was quicker
                if error.errno != errno.EBUSY or force:
                    raise HostError(
                        "unmount", mount.target, error.strerror or str(error), error.errno
                    ) from error
                time.sleep(_UNMOUNT_PAUSE)
            else:
                break


def _remove_mount_point(entry: Entry) -> None:
    if not entry.made:
        return
    try:
        with opened(entry.tree) as fd:
            remove_mount_target(fd, entry.made)
    except FileNotFoundError:
        return  # the tree is gone, and what was made in it
    except OSError as error:
        if (
            error.errno != errno.EROFS
        ):  # else in a volume that is not there any more, or that must not be written to
            raise HostError(
                "remove the mount point", entry.target, error.strerror or str(error), error.errno
            ) from error


@contextlib.contextmanager
def opened(directory: str) -> Iterator[int]:
    """A descriptor of a directory. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
