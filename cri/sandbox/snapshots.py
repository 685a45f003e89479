"""Unpacked image layers in directories, and roots of containers as whole copies of them: for every system.

<state>/snapshots/<kind>/<chain id>/fs             a committed layer (overlay), or all of its chain (copy)
<state>/snapshots/<kind>/<chain id>/...            see `cri.sandbox.layer_files`
<state>/snapshots/<kind>/new-<chain id>/           begun and not committed
<state>/snapshots/<kind>/new-gone-...-<chain id>/  removed and not deleted

A layer gets its name by a rename, after all of it is on disk: the name is the proof that it is whole. Whatever else lies
in there is not ours (lost+found of a filesystem that is mounted there) and stays.
"""

from __future__ import annotations

import abc
import asyncio
import errno
import os
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from baustelle.removal import remove_tree
from cri.sandbox.copytree import copy_tree, disk_usage
from cri.sandbox.durable import SharedSync, make_directory, remove_any, sync_tree
from cri.sandbox.host import HostError, Snapshotter
from cri.sandbox.layer_files import FILES, SYNCED, USAGE, judge, seal, write_usage
from cri.sandbox.rubbish import Rubbish
from cri.sandbox.small_files import sync_directory
from cri.sandbox.spec import ContainerSpec, DiskUsage
from cri.threads import threaded

log = structlog.get_logger(__name__)

BEGUN = "new-"
"""What the names of layers begin with that are not committed."""

GONE = f"{BEGUN}gone-"
"""What the names of removed layers begin with: to releases that know none such they are unfinished, and go too."""

PATIENCE = 0.5
"""Seconds that a start, and whoever removes a layer, wait for what is thrown away to be gone."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_CHAIN_ID = re.compile(r"[a-z0-9]+:[A-Za-z0-9_-]+")
"""A digest, in letters that a file and a dataset may have in their names."""

_NAME = re.compile(r"[a-z0-9]+-[0-9a-f]{32,}")
"""A layer's directory: a digest of any algorithm, its colon as a hyphen."""


class RootSnapshotter(Snapshotter):
    """A snapshotter as its driver sees it: it also makes the root filesystems of containers. These methods block."""

    plain = True
    """A container's root is nothing but files in the container's directory, and goes with it."""

    @abc.abstractmethod
    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Make a container's writable root, anew if there is one; what the driver needs to use it.

        `kind` is that of the snapshotter, `target` the path at which the container shall see its root. Except for
        overlay, `source` is where the root is now. Raises HostError, OSError.
        """

    @abc.abstractmethod
    def discard(self, container: ContainerSpec) -> None:
        """Remove a container's root with all that was written to it; succeeds if it is gone. No process uses it."""

    @abc.abstractmethod
    def writable(self, container: ContainerSpec) -> Path:
        """Where a container's own files are."""

    def lower(self, layers: Sequence[str]) -> list[str]:
        """The directories that show an image together, lowest first: without overlays the last one has all files.

        Blocks. Raises HostError if a layer is not there.
        """
        return [str(self.layer(layers[-1]))] if layers else []

    @abc.abstractmethod
    def layer(self, chain_id: str) -> Path:
        """The files of a committed chain, not to be written to: all of them, or with overlay those of its last layer.

        Raises HostError if it is not there.
        """

    @abc.abstractmethod
    def remove_unfinished(self) -> list[str]:
        """Throw away what a daemon that died had begun; says what it was."""

    def remove_unknown(self, containers: Collection[str]) -> list[str]:  # noqa: ARG002
        """Throw away the roots of all but these containers; says what it was.

        Here there is nothing to do: a root goes with its container's directory.
        """
        return []

    def usage(self, container: ContainerSpec, check: Callable[[], None] = lambda: None) -> DiskUsage:
        """What a container's own files take. `check` is called for each of them, where they have to be looked at."""
        return disk_usage(str(self.writable(container)), check)


class DirectorySnapshotter(RootSnapshotter):
    """A directory per chain id, renamed into place when it is complete and on disk."""

    def __init__(self, state: Path, sync_filesystem: Callable[[int], None] | None = None) -> None:
        """Keep layers below `state`. Blocks. Raises OSError.

        `sync_filesystem` brings all of a filesystem to disk, given a descriptor on it, and raises OSError if a write has
        failed since that was opened. Without it each file of a layer is synced by itself, which takes far longer.
        """
        self._directory = state / "snapshots" / self.kind
        for path in (self._directory.parent, self._directory):
            if (aside := make_directory(path)) is not None:
                log.error(
                    "no directory; put aside, images must be pulled again", path=str(path), now=str(aside)
                )
        self._sync_filesystem = sync_filesystem
        self._under_way: set[str] = set()
        self._named: set[str] = set()
        """Layers under way that have their names."""
        self._opened: int | None = None
        """A descriptor on the filesystem, open while any layer is under way: of a write that failed before a descriptor was
        opened, its syncfs(2) may not tell."""
        self._opening = threading.Lock()
        self._shared_sync = SharedSync(self._sync_all)
        self._shared_rename = SharedSync(self._sync_names)
        self._rubbish = Rubbish(self._sync_names)
        self._doubtful: dict[str, str] = {}

    async def chains(self) -> Mapping[str, DiskUsage | None]:
        """All committed chain ids that are whole."""
        return await asyncio.to_thread(self._chains)

    async def doubtful(self) -> Mapping[str, str]:
        """The layers that `chains` left out last."""
        return dict(self._doubtful)

    async def measure(self, chain_id: str) -> DiskUsage:
        """Measure a layer again."""
        return await asyncio.to_thread(self._measure, chain_id)

    async def begin(self, chain_id: str, parent: str | None) -> Path:
        """An empty directory, or the parent's content, to unpack a layer into."""
        self._under_way.add(chain_id)
        try:
            return await threaded(lambda check: self._begin(chain_id, parent, check))
        except BaseException:
            self._end(chain_id)
            raise

    async def commit(self, chain_id: str) -> DiskUsage:
        """Make the unpacked layer permanent: it is on disk before it has its name, and has it, on disk, on return."""
        begun = self._begun(chain_id)
        usage = await threaded(lambda check: self._seal(begun, check))
        if self._sync_filesystem is not None:
            await self._shared_sync()
        else:
            await threaded(lambda check: sync_tree(begun, check))
        await threaded(lambda _: self._name(chain_id))
        await self._shared_rename()
        self._end(chain_id)
        return usage

    async def abort(self, chain_id: str) -> None:
        """Throw a begun layer away; what takes longer than a moment to delete goes behind the caller."""
        try:
            await asyncio.to_thread(self._abort, chain_id)
            await asyncio.to_thread(self._rubbish.wait, PATIENCE)
        finally:
            self._end(chain_id)

    async def remove(self, chain_id: str) -> None:
        """Take a committed layer out of sight; what takes longer than a moment to delete goes behind the caller."""
        await asyncio.to_thread(self._remove, chain_id)
        await asyncio.to_thread(self._rubbish.wait, PATIENCE)

    def remove_unfinished(self) -> list[str]:
        """Throw away what a daemon that died had begun, or begun to remove. Blocks, for a moment: the rest goes on behind."""
        found = []
        try:
            for path in sorted(self._directory.iterdir()):
                if path.name.startswith(GONE):
                    if self._rubbish.put(path):
                        found.append(f"removed layer {path.name.removeprefix(GONE).partition('-')[2]}")
                elif path.name.startswith(BEGUN):
                    self._throw_away(path)
                    found.append(f"unfinished layer {path.name.removeprefix(BEGUN)}")
        except OSError as error:
            log.warning("unfinished layers stay", directory=str(self._directory), error=str(error))
        self._rubbish.wait(PATIENCE)
        return found

    def wait(self) -> None:
        """Wait until what was removed is deleted. Blocks."""
        self._rubbish.wait()

    def layer(self, chain_id: str) -> Path:
        """A committed layer's files. Raises HostError if it is not there."""
        path = self._directory / name_of_chain(chain_id) / FILES
        if not path.is_dir():
            raise missing_layer(chain_id)
        return path

    def _begun(self, chain_id: str) -> Path:
        return self._directory / f"{BEGUN}{name_of_chain(chain_id)}"

    def _abort(self, chain_id: str) -> None:
        begun = self._begun(chain_id)
        if os.path.lexists(begun):
            self._throw_away(begun)
        if chain_id in self._named:  # by a commit that was cancelled before anybody heard of it
            self._remove(chain_id)

    def _begin(self, chain_id: str, parent: str | None, check: Callable[[], None]) -> Path:
        begun = self._begun(chain_id)
        remove_any(begun)
        with self._opening:
            if self._opened is None:
                self._opened = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        begun.mkdir(mode=0o700)
        files = begun / FILES
        files.mkdir(mode=0o755)
        if parent is not None and not self.overlay_whiteouts:
            copy_tree(str(self.layer(parent)), str(files), check)
        return files

    def _seal(self, begun: Path, check: Callable[[], None]) -> DiskUsage:
        usage = disk_usage(str(begun / FILES), check)
        seal(begun, usage)
        return usage

    def _name(self, chain_id: str) -> None:
        begun, committed = self._begun(chain_id), self._directory / name_of_chain(chain_id)
        if os.path.lexists(committed):
            if not judge(committed).doubt:  # somebody else was quicker with the same content
                remove_any(begun)
                return
            self._throw_away(committed)
        begun.rename(committed)
        self._named.add(chain_id)

    def _measure(self, chain_id: str) -> DiskUsage:
        usage = disk_usage(str(self.layer(chain_id)))
        if chain_id not in self._doubtful:  # else the next start would believe in it
            write_usage(self._directory / name_of_chain(chain_id), usage)
        return usage

    def _remove(self, chain_id: str) -> None:
        committed = self._directory / name_of_chain(chain_id)
        if os.path.lexists(committed):
            self._throw_away(committed)

    def _throw_away(self, path: Path) -> None:
        doomed = path.with_name(f"{GONE}{secrets.token_hex(4)}-{path.name.removeprefix(BEGUN)}")
        try:
            path.rename(doomed)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            # The directory has no room for a longer name. Without these two nobody takes what is left for a layer.
            for name in (SYNCED, USAGE):
                remove_any(path / name)
            sync_directory(path)
            remove_any(path)
        else:
            self._rubbish.put(doomed)

    def _end(self, chain_id: str) -> None:
        """A layer is not under way any more."""
        self._under_way.discard(chain_id)
        self._named.discard(chain_id)
        with self._opening:
            if not self._under_way and self._opened is not None:
                os.close(self._opened)
                self._opened = None

    def _sync_all(self) -> None:
        assert self._sync_filesystem is not None
        with self._opening:
            if self._opened is None:
                return  # who wanted it has given up
            fd = os.dup(self._opened)
        try:
            self._sync_filesystem(fd)
        finally:
            os.close(fd)

    def _sync_names(self) -> None:
        sync_directory(self._directory)

    def _chains(self) -> dict[str, DiskUsage | None]:
        chains: dict[str, DiskUsage | None] = {}
        strays = []
        self._doubtful = {}
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith(BEGUN):
                continue
            if not is_name_of_chain(path.name):
                strays.append(path.name)
                continue
            judgement = judge(path)
            if judgement.doubt:
                self._doubtful[chain_of_name(path.name)] = judgement.doubt
            else:
                chains[chain_of_name(path.name)] = judgement.usage
        if strays:
            log.warning("no layers of ours; left alone", directory=str(self._directory), names=strays)
        return chains


class CopySnapshotter(DirectorySnapshotter):
    """Whole copies, on any filesystem: every container has all files of its image for itself."""

    kind = "copy"
    parallel = False
    overlay_whiteouts = False

    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Copy the image."""
        root = self.writable(container)
        remove_tree(root)  # of a container whose making was interrupted
        root.mkdir(mode=0o755)
        if container.layers:
            copy_tree(str(self.layer(container.layers[-1])), str(root))
        return {"kind": self.kind, "source": str(root), "target": str(root)}

    def discard(self, container: ContainerSpec) -> None:
        """Remove the copy."""
        remove_tree(self.writable(container))

    def writable(self, container: ContainerSpec) -> Path:
        """The copy."""
        return Path(container.directory, "rootfs")


def missing_layer(chain_id: str) -> HostError:
    """The error for a layer that should be there."""
    return HostError("use", f"layer {chain_id}", "it is not unpacked on this node; pull the image again")


def chain_of_name(name: str) -> str:
    """The chain id of a directory's or dataset's name."""
    return name.replace("-", ":", 1)


def is_name_of_chain(name: str) -> bool:
    """Whether a directory or a dataset is called after a chain."""
    return _NAME.fullmatch(name) is not None


def name_of_chain(chain_id: str) -> str:
    """The name of a chain's directory or dataset. Raises HostError for what is no chain id."""
    if not _CHAIN_ID.fullmatch(chain_id):
        raise HostError("use", f"layer {chain_id!r}", "this is no chain id")
    return chain_id.replace(":", "-", 1)
