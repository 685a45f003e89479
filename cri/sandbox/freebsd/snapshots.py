"""The choice between ZFS and whole copies."""

from __future__ import annotations

from pathlib import Path

import structlog

from cri.sandbox.freebsd import libzfs
from cri.sandbox.freebsd.calls import Calls
from cri.sandbox.freebsd.zfs import ZfsSnapshotter
from cri.sandbox.host import HostError
from cri.sandbox.snapshots import CopySnapshotter, RootSnapshotter

log = structlog.get_logger(__name__)


def make_snapshotter(state: Path, kind: str, calls: Calls) -> RootSnapshotter:
    """The snapshotter of a kind. Blocks. Raises HostError.

    `auto` is zfs where the state directory lies on ZFS, else copy. `zfs:DATASET` keeps layers and roots below another
    dataset than the one on which the state directory lies.
    """
    kind, _, dataset = kind.partition(":")
    if kind == "copy":
        return _copies(state, calls)
    if kind not in ("auto", "zfs"):
        raise HostError("use", f'snapshotter "{kind}"', "choose auto, copy or zfs")
    try:
        below = calls.mount_of(str(state))
        if not dataset and below.kind != "zfs":
            if kind == "auto":
                return CopySnapshotter(state)
            raise HostError(
                "use",
                'snapshotter "zfs"',
                f"the state directory {state} lies on {below.kind}; move it to a ZFS dataset, or choose copy",
            )
        library = libzfs.load()
    except OSError as error:
        if kind == "auto":
            return CopySnapshotter(state)
        raise HostError("use", 'snapshotter "zfs"', str(error), error.errno) from error
    return ZfsSnapshotter(state, dataset or below.source, library, calls)


def _copies(state: Path, calls: Calls) -> CopySnapshotter:
    """Whole copies. A pool is synced as a whole; UFS has no call that does so and waits, so each file is."""
    try:
        below = calls.mount_of(str(state))
        if below.kind == "zfs":
            library = libzfs.load()
            return CopySnapshotter(state, lambda _: library.sync(below.source))
    except OSError as error:
        log.info("layers are synced file by file", reason=str(error))
    return CopySnapshotter(state)
