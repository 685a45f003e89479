"""Unpacked image layers in directories, and roots of containers as whole copies of them: for every system.

<state>/snapshots/<kind>/<chain id>/fs          a committed layer (overlay), or all of its chain (copy)
<state>/snapshots/<kind>/<chain id>/usage.json
<state>/snapshots/<kind>/new-<chain id>/        begun and not committed
"""

from __future__ import annotations

import abc
import asyncio
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from baustelle.removal import remove_tree
from cri.sandbox import wire
from cri.sandbox.copytree import copy_tree, disk_usage
from cri.sandbox.host import HostError, Snapshotter
from cri.sandbox.spec import ContainerSpec, DiskUsage

BEGUN = "new-"
"""What the names of layers begin with that are not committed."""


_CHAIN_ID = re.compile(r"[a-z0-9]+:[A-Za-z0-9_-]+")
"""A digest, in letters that a file and a dataset may have in their names."""


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

    def usage(self, container: ContainerSpec) -> DiskUsage:
        """What a container's own files take."""
        return disk_usage(str(self.writable(container)))


class DirectorySnapshotter(RootSnapshotter):
    """A directory per chain id, renamed into place when it is complete."""

    def __init__(self, state: Path) -> None:
        """Keep layers below `state`."""
        self._directory = state / "snapshots" / self.kind
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def chains(self) -> Mapping[str, DiskUsage]:
        """All committed chain ids."""
        return await asyncio.to_thread(self._chains)

    async def begin(self, chain_id: str, parent: str | None) -> Path:
        """An empty directory, or the parent's content, to unpack a layer into."""
        return await asyncio.to_thread(self._begin, chain_id, parent)

    async def commit(self, chain_id: str) -> DiskUsage:
        """Make the unpacked layer permanent."""
        return await asyncio.to_thread(self._commit, chain_id)

    async def abort(self, chain_id: str) -> None:
        """Throw a begun layer away."""
        await asyncio.to_thread(remove_tree, self._begun(chain_id))

    async def remove(self, chain_id: str) -> None:
        """Remove a committed layer."""
        await asyncio.to_thread(self._remove, chain_id)

    def remove_unfinished(self) -> list[str]:
        """Throw away what a daemon that died had begun. Blocks."""
        found = [path for path in self._directory.iterdir() if path.name.startswith(BEGUN)]
        for path in found:
            remove_tree(path)
        return [f"unfinished layer {path.name.removeprefix(BEGUN)}" for path in found]

    def layer(self, chain_id: str) -> Path:
        """A committed layer's files. Raises HostError if it is not there."""
        path = self._directory / name_of_chain(chain_id) / "fs"
        if not path.is_dir():
            raise missing_layer(chain_id)
        return path

    def _begun(self, chain_id: str) -> Path:
        return self._directory / f"{BEGUN}{name_of_chain(chain_id)}"

    def _begin(self, chain_id: str, parent: str | None) -> Path:
        begun = self._begun(chain_id)
        remove_tree(begun)
        begun.mkdir(mode=0o700)
        files = begun / "fs"
        files.mkdir(mode=0o755)
        if parent is not None and not self.overlay_whiteouts:
            copy_tree(str(self.layer(parent)), str(files))
        return files

    def _commit(self, chain_id: str) -> DiskUsage:
        begun, committed = self._begun(chain_id), self._directory / name_of_chain(chain_id)
        usage = disk_usage(str(begun / "fs"))
        (begun / "usage.json").write_text(json.dumps(wire.encode(usage)))
        if committed.exists():  # somebody else was quicker with the same content
            remove_tree(begun)
        else:
            begun.rename(committed)
        return usage

    def _remove(self, chain_id: str) -> None:
        committed = self._directory / name_of_chain(chain_id)
        doomed = self._begun(chain_id)
        remove_tree(doomed)
        try:
            committed.rename(doomed)  # first out of sight, as removing takes its time
        except FileNotFoundError:
            return
        remove_tree(doomed)

    def _chains(self) -> dict[str, DiskUsage]:
        chains = {}
        for path in self._directory.iterdir():
            if not path.name.startswith(BEGUN):
                usage = wire.decode(DiskUsage, json.loads((path / "usage.json").read_bytes()))
                chains[chain_of_name(path.name)] = usage
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


def name_of_chain(chain_id: str) -> str:
    """The name of a chain's directory or dataset. Raises HostError for what is no chain id."""
    if not _CHAIN_ID.fullmatch(chain_id):
        raise HostError("use", f"layer {chain_id!r}", "this is no chain id")
    return chain_id.replace(":", "-", 1)
