"""All layers of an image as one tree, in a mount namespace that nobody else sees.

The daemon looks into one in the namespace of a thread that ends right after; who builds a container's tree has a plan for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from cri.sandbox.host import UnfitRequestError
from cri.sandbox.linux import kernel

PLACE = "place"
"""An empty directory of a container's, to mount on in a namespace that nobody sees."""


def make_place(directory: str) -> str:
    """That of the container with this directory; made if it is not there, as by a daemon of an older release. Raises OSError."""
    path = f"{directory}/{PLACE}"
    os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103
    return path


def enter_own_namespace() -> None:
    """Leave the mount namespace for a copy of it, where nothing that is mounted reaches the node.

    A thread that does so has a working directory of its own, too; it must not go back to a pool.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    # Slave rather than private: what the node unmounts must not be kept busy here.
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)


def mount_overlay(lower: Sequence[str], target: str) -> None:
    """Mount layers over an empty directory, the lowest of `lower` first; nothing can be written. Raises OSError."""
    opened = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in lower]
    try:
        layers = [str(fd) for fd in opened][::-1]
        if len(layers) < 2:
            layers.append(target)  # as an overlay without an upper directory needs two
        # By descriptor numbers: the options fit one page with any number of layers and any path.
        os.chdir("/proc/self/fd")
        kernel.mount("overlay", target, "overlay", 0, f"lowerdir={':'.join(layers)}")
        os.chdir("/")
    finally:
        for fd in opened:
            os.close(fd)


@contextlib.contextmanager
def opened(lower: Sequence[str], place: str, *, overlay: bool) -> Iterator[int]:
    """The root directory of an image, open (O_PATH). `place` is an empty directory to mount it on for the while.

    `lower` are its layers, the lowest first; without `overlay` the last one has all its files.
    """
    if overlay:
        mount_overlay(lower, place)
    root = os.open(place if overlay else lower[-1], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)
        if overlay:
            kernel.unmount(place, kernel.MNT_DETACH)


def find(root: int, path: str, reference: str) -> int:
    """What of an image a volume is to show, open (O_PATH); links do not lead out. Raises UnfitRequestError."""
    try:
        return kernel.open_in_root(root, path or "/")
    except OSError as error:
        raise UnfitRequestError(
            "mount on", reference, f"the image has no {path}: {error.strerror}", error.errno
        ) from error
