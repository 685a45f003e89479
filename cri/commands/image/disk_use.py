"""`image df`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cri.commands.image.removal import in_use
from cri.commands.image.text import emit, size, table

if TYPE_CHECKING:
    from cri.api.runtime import v1
    from cri.commands.image.daemon import Daemon


def df(daemon: Daemon, output: str) -> None:
    """Print what images and containers take on disk. Raises DaemonError."""
    found = measured(daemon)
    if output == "json":
        emit(json.dumps(found, indent=2) + "\n")
        return
    rows = [
        (
            kind,
            str(found[kind]["number"]),
            str(found[kind]["inUse"]),
            size(one["usedBytes"]),
            str(one["inodesUsed"]),
            one["mountpoint"],
        )
        for kind in ("images", "containers")
        for one in found[kind]["filesystems"]
    ]
    emit(table(("TYPE", "NUMBER", "IN USE", "ON DISK", "FILES", "FILESYSTEM"), rows))
    if unused := found["images"]["reclaimable"]["number"]:
        pulled = size(found["images"]["reclaimable"]["pulledBytes"])
        emit(
            f"\nNo container uses {unused} of the images, pulled as {pulled}, compressed; "
            "cri-jails image prune --all removes them.\n"
        )


def measured(daemon: Daemon) -> dict[str, Any]:
    """The figures: of images on disk unpacked, each layer once; of what could be removed as it was pulled. Raises DaemonError."""
    images, usage = daemon.images(), daemon.usage()
    containers = daemon.containers()
    used = in_use(daemon, images)
    idle = [image for image in images if image.id not in used and not image.pinned]
    return {
        "images": {
            "number": len(images),
            "inUse": sum(image.id in used for image in images),
            "pulledBytes": sum(image.size for image in images),
            "reclaimable": {"number": len(idle), "pulledBytes": sum(image.size for image in idle)},
            "filesystems": [_filesystem(one) for one in usage.image_filesystems],
        },
        "containers": {
            "number": len(containers),
            "inUse": sum(container.state.name == "CONTAINER_RUNNING" for container in containers),
            "filesystems": [_filesystem(one) for one in usage.container_filesystems],
        },
    }


def _filesystem(usage: v1.FilesystemUsage) -> dict[str, Any]:
    return {
        "mountpoint": "" if usage.fs_id is None else usage.fs_id.mountpoint,
        "usedBytes": 0 if usage.used_bytes is None else usage.used_bytes.value,
        "inodesUsed": 0 if usage.inodes_used is None else usage.inodes_used.value,
    }
