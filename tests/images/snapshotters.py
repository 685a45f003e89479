"""The snapshotters of this system that keep plain directories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from cri.sandbox.snapshots import DirectorySnapshotter

_LINUX = sys.platform == "linux"

KINDS: list[object] = (
    ["copy", pytest.param("overlay", marks=pytest.mark.node)]
    if _LINUX
    else [pytest.param("copy", marks=pytest.mark.node)]
)


def make(state: Path, kind: str) -> DirectorySnapshotter:
    """One of `KINDS`, with the system's own binding, which the other system has not."""
    if _LINUX:
        from cri.sandbox.linux import snapshots

        return snapshots.make_snapshotter(state, kind)
    from cri.sandbox.freebsd import kernel
    from cri.sandbox.freebsd.snapshots import make_snapshotter

    return cast("DirectorySnapshotter", make_snapshotter(state, kind, kernel))
