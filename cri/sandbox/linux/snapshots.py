"""Unpacked image layers on disk, as overlay layers or as whole copies.

<state>/snapshots/<kind>/<chain id>/fs          a committed layer (overlay), or all of its chain (copy)
<state>/snapshots/<kind>/<chain id>/usage.json
<state>/snapshots/<kind>/new-<chain id>/        begun and not committed
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cri.sandbox import wire
from cri.sandbox.host import HostError, Snapshotter
from cri.sandbox.linux import kernel
from cri.sandbox.linux.copytree import copy_tree, disk_usage
from cri.sandbox.spec import ContainerSpec, DiskUsage

_BEGUN = "new-"


class DirectorySnapshotter(Snapshotter):
    """What both kinds have in common: a directory per chain id, renamed into place when it is complete."""

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
        await asyncio.to_thread(wire.remove_tree, self._begun(chain_id))

    async def remove(self, chain_id: str) -> None:
        """Remove a committed layer."""
        await asyncio.to_thread(self._remove, chain_id)

    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Make a container's writable root; returns what `rootfs.RootBuilder` needs to mount it. Blocks."""
        raise NotImplementedError

    def writable(self, container: ContainerSpec) -> Path:
        """Where a container's own files are."""
        raise NotImplementedError

    def remove_unfinished(self) -> list[str]:
        """Throw away what a daemon that died had begun. Blocks."""
        found = [path for path in self._directory.iterdir() if path.name.startswith(_BEGUN)]
        for path in found:
            wire.remove_tree(path)
        return [f"unfinished layer {path.name.removeprefix(_BEGUN)}" for path in found]

    def layer(self, chain_id: str) -> Path:
        """A committed layer's files. Raises HostError if it is not there."""
        path = self._directory / _name(chain_id) / "fs"
        if not path.is_dir():
            raise HostError(
                "use", f"layer {chain_id}", "it is not unpacked on this node; pull the image again"
            )
        return path

    def _begun(self, chain_id: str) -> Path:
        return self._directory / f"{_BEGUN}{_name(chain_id)}"

    def _begin(self, chain_id: str, parent: str | None) -> Path:
        begun = self._begun(chain_id)
        wire.remove_tree(begun)
        begun.mkdir(mode=0o700)
        files = begun / "fs"
        files.mkdir(mode=0o755)
        if parent is not None and not self.overlay_whiteouts:
            copy_tree(str(self.layer(parent)), str(files))
        return files

    def _commit(self, chain_id: str) -> DiskUsage:
        begun, committed = self._begun(chain_id), self._directory / _name(chain_id)
        usage = disk_usage(str(begun / "fs"))
        (begun / "usage.json").write_text(json.dumps(wire.encode(usage)))
        if committed.exists():  # somebody else was quicker with the same content
            wire.remove_tree(begun)
        else:
            begun.rename(committed)
        return usage

    def _remove(self, chain_id: str) -> None:
        committed = self._directory / _name(chain_id)
        doomed = self._begun(chain_id)
        wire.remove_tree(doomed)
        try:
            committed.rename(doomed)  # first out of sight, as removing takes its time
        except FileNotFoundError:
            return
        wire.remove_tree(doomed)

    def _chains(self) -> dict[str, DiskUsage]:
        chains = {}
        for path in self._directory.iterdir():
            if not path.name.startswith(_BEGUN):
                usage = wire.decode(DiskUsage, json.loads((path / "usage.json").read_bytes()))
                chains[path.name.replace("-", ":", 1)] = usage
        return chains


class OverlaySnapshotter(DirectorySnapshotter):
    """overlayfs: layers are shared, each container has an upper directory of its own."""

    kind = "overlay"
    parallel = True
    overlay_whiteouts = True

    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Make the directories of an overlay mount."""
        lower = [str(self.layer(chain_id)) for chain_id in container.layers]
        directory = Path(container.directory)
        for name in ("upper", "work", "rootfs"):
            wire.remove_tree(directory / name)  # of a container whose making was interrupted
            (directory / name).mkdir(mode=0o755)
        if lower:
            _copy_top(lower[-1], str(directory / "upper"))
        return {
            "kind": self.kind,
            "lower": lower,
            "upper": str(directory / "upper"),
            "work": str(directory / "work"),
            "target": str(directory / "rootfs"),
        }

    def writable(self, container: ContainerSpec) -> Path:
        """The upper directory."""
        return Path(container.directory, "upper")


class CopySnapshotter(DirectorySnapshotter):
    """Whole copies, on any filesystem: every container has all files of its image for itself."""

    kind = "copy"
    parallel = False
    overlay_whiteouts = False

    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Copy the image."""
        root = Path(container.directory, "rootfs")
        wire.remove_tree(root)
        root.mkdir(mode=0o755)
        if container.layers:
            copy_tree(str(self.layer(container.layers[-1])), str(root))
        return {"kind": self.kind, "source": str(root), "target": str(root)}

    def writable(self, container: ContainerSpec) -> Path:
        """The copy."""
        return Path(container.directory, "rootfs")


def make_snapshotter(state: Path, kind: str) -> DirectorySnapshotter:
    """The snapshotter of a kind; `auto` is overlay where the filesystem of `state` can carry it. Blocks."""
    if kind == "auto":
        kind = "overlay" if supports_overlay(state) else "copy"
    if kind == "overlay":
        return OverlaySnapshotter(state)
    if kind == "copy":
        return CopySnapshotter(state)
    raise HostError("use", f'snapshotter "{kind}"', "choose auto, overlay or copy")


def supports_overlay(state: Path) -> bool:
    """Whether an overlay can have its upper directory in `state`: tries it, with a mount that is nowhere."""
    with tempfile.TemporaryDirectory(prefix="probe-", dir=state) as folder:
        options: dict[str, str | None] = {}
        opened = []
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{folder}/{name}")  # noqa: PTH102
            opened.append(os.open(f"{folder}/{name}", os.O_PATH | os.O_CLOEXEC))
            options[f"{name}dir"] = f"/proc/self/fd/{opened[-1]}"  # fsconfig(2) takes 255 bytes
        try:
            os.close(kernel.new_filesystem("overlay", options))
        except OSError:
            return False
        finally:
            for fd in opened:
                os.close(fd)
    return True


def _copy_top(source: str, target: str) -> None:
    """The root directory of the merged tree has the attributes of the upper one: make them those of the image."""
    found = os.stat(source)  # noqa: PTH116
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, found.st_mode & 0o7777)  # noqa: PTH101


def _name(chain_id: str) -> str:
    name = chain_id.replace(":", "-", 1)
    if "/" in name or name.startswith((".", _BEGUN)) or not name:
        raise HostError("use", f"layer {chain_id!r}", "this is no chain id")
    return name
