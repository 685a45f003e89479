"""The choice between ZFS and whole copies."""

from __future__ import annotations

from pathlib import Path

from cri.sandbox.freebsd import libzfs
from cri.sandbox.freebsd.calls import Calls
from cri.sandbox.freebsd.zfs import ZfsSnapshotter
from cri.sandbox.host import HostError
from cri.sandbox.snapshots import CopySnapshotter, RootSnapshotter


def make_snapshotter(state: Path, kind: str, calls: Calls) -> RootSnapshotter:
    """The snapshotter of a kind. Blocks. Raises HostError.

    `auto` is zfs where the state directory lies on ZFS, else copy. `zfs:DATASET` keeps layers and roots below another
    dataset than the one on which the state directory lies.
    """
    kind, _, dataset = kind.partition(":")
    if kind == "copy":
        return CopySnapshotter(state)
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
