"""Roots of containers as overlayfs mounts, and the choice between them and whole copies."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baustelle.layertree import LayerTree
from baustelle.overlay import is_opaque
from baustelle.removal import remove_tree
from baustelle.restack import restack
from cri.sandbox.durable import remove_any
from cri.sandbox.host import HostError
from cri.sandbox.layer_files import FILES
from cri.sandbox.linux import kernel
from cri.sandbox.snapshots import CopySnapshotter, DirectorySnapshotter
from cri.sandbox.spec import ContainerSpec
from cri.threads import threaded

_PROBE = "probe-"


class OverlaySnapshotter(DirectorySnapshotter):
    """overlayfs: layers are shared, each container has an upper directory of its own."""

    kind = "overlay"
    parallel = True
    overlay_whiteouts = True

    async def fit(self, chain_id: str, below: Sequence[str], tree: object) -> None:
        """Have a layer show what it would be if it was applied to those below."""
        assert isinstance(tree, LayerTree)
        root, lower = self._begun(chain_id) / FILES, [self.layer(one) for one in below]
        await threaded(lambda check: restack(root, tree, lower, check))

    def lower(self, layers: Sequence[str]) -> list[str]:
        """The directories to be stacked for a chain, lowest first. Blocks. Raises HostError, OSError.

        overlayfs does not look whether the topmost directory of a layer is opaque, so what lies below it is left out.
        """
        directories: list[str] = []
        for chain_id in reversed(layers):
            path = self.layer(chain_id)
            directories.append(str(path))
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if is_opaque(fd):
                    break
            finally:
                os.close(fd)
        return directories[::-1]

    def prepare(self, container: ContainerSpec) -> dict[str, Any]:
        """Make the directories of an overlay mount."""
        lower = self.lower(container.layers)
        self.discard(container)  # what is there is of a container whose making was interrupted
        upper, work, target = _directories(container)
        for path in (upper, work, target):
            path.mkdir(mode=0o755)
        if lower:
            _copy_top(lower[-1], str(upper))
        return {
            "kind": self.kind,
            "lower": lower,
            "upper": str(upper),
            "work": str(work),
            "target": str(target),
        }

    def discard(self, container: ContainerSpec) -> None:
        """Remove these directories."""
        for path in _directories(container):
            remove_tree(path)

    def writable(self, container: ContainerSpec) -> Path:
        """The upper directory."""
        return _directories(container)[0]


def make_snapshotter(state: Path, kind: str) -> DirectorySnapshotter:
    """The snapshotter of a kind; `auto` is overlay where the filesystem of `state` can carry it. Blocks."""
    if kind == "auto":
        kind = _choose(state)
    if kind == "overlay":
        return OverlaySnapshotter(state, kernel.sync_filesystem)
    if kind == "copy":
        return CopySnapshotter(state, kernel.sync_filesystem)
    raise HostError("use", f'snapshotter "{kind}"', "choose auto, overlay or copy")


def _choose(state: Path) -> str:
    try:
        return "overlay" if supports_overlay(state) else "copy"
    except OSError:
        # A disk that is full, or read-only, cannot be tried. It must not keep a node from starting that has chosen before.
        for kind in ("overlay", "copy"):
            if (state / "snapshots" / kind).is_dir():
                return kind
        raise


def supports_overlay(state: Path) -> bool:
    """Whether an overlay can have its upper directory in `state`: tries it, with a mount that is nowhere. Raises OSError."""
    for left in state.glob(f"{_PROBE}*"):  # by a daemon that was killed here
        remove_any(left)
    with tempfile.TemporaryDirectory(prefix=_PROBE, dir=state) as folder:
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


def _directories(container: ContainerSpec) -> tuple[Path, Path, Path]:
    """The overlay's upper and work directory, and where it is mounted."""
    directory = Path(container.directory)
    return directory / "upper", directory / "work", directory / "rootfs"


def _copy_top(source: str, target: str) -> None:
    """The root directory of the merged tree has the attributes of the upper one: make them those of the image."""
    found = os.stat(source)  # noqa: PTH116
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, found.st_mode & 0o7777)  # noqa: PTH101
