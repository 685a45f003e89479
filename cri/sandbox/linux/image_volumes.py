"""What a container wants of images beside its root: those that are mounted, and content for the volumes that its own declares."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from cri.sandbox import declared_volumes
from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import image_trees, kernel
from cri.sandbox.snapshots import RootSnapshotter
from cri.sandbox.spec import ContainerSpec, MountSpec


def wanted(spec: ContainerSpec) -> bool:
    """Whether there is anything to do."""
    return any(mount.image_layers for mount in spec.mounts) or any(declared_volumes.of(spec))


def layers_of_mounts(spec: ContainerSpec, snapshots: RootSnapshotter) -> Mapping[str, list[str]]:
    """Where the layers of each image that is mounted are, by the mount's target. Raises HostError."""
    return {mount.target: snapshots.lower(mount.image_layers) for mount in spec.mounts if mount.image_layers}


def prepare(spec: ContainerSpec, snapshots: RootSnapshotter) -> None:
    """See that the images have what is to be mounted of them, and make the volumes that the container's own declares.

    Blocks, in a thread that ends afterwards: it has left the mount namespace. Raises HostError.
    """
    overlay = snapshots.overlay_whiteouts
    try:
        place = image_trees.make_place(spec.directory)
        image_trees.enter_own_namespace()
        for mount in spec.mounts:
            if mount.image_layers:
                lower = snapshots.lower(mount.image_layers)
                with image_trees.opened(lower, place, overlay=overlay) as root:
                    os.close(image_trees.find(root, mount.image_path, mount.target))
        declared = list(declared_volumes.of(spec))
        if declared and spec.layers:
            lower = snapshots.lower(spec.layers)
            with image_trees.opened(lower, place, overlay=overlay) as root:
                for volume in declared:
                    _fill(volume, root)
    except OSError as error:
        subject = f"volumes of container {spec.id}"
        raise HostError("make", subject, f"{error.strerror}: {error.filename}", error.errno) from error


def _fill(volume: MountSpec, root: int) -> None:
    try:
        found = kernel.open_in_root(root, volume.target)
    except FileNotFoundError:
        declared_volumes.make(volume, None)
        return
    try:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            raise UnfitRequestError(
                "mount on", volume.target, "the image declares it as a volume, and has a file there"
            )
        declared_volumes.make(volume, f"/proc/self/fd/{found}")
    finally:
        os.close(found)
