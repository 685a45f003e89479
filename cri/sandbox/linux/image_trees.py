"""All layers of an image as one tree, in a mount namespace that nobody else sees.

A warden's child uses it in the namespace of its container, the daemon in that of a thread which ends right after.
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


def mount_overlay(
    lower: Sequence[str], target: str, flags: int, writable: tuple[str, str] | None = None
) -> None:
    """Mount layers over an empty directory, the lowest of `lower` first. Raises OSError.

    `writable` has the upper and the work directory; without them nothing can be written.
    """
    opened = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*lower, *(writable or ()))]
    try:
        numbers = [str(fd) for fd in opened]
        layers = numbers[: len(lower)][::-1]
        if len(layers) < (1 if writable else 2):
            layers.append(target)  # as an overlay needs one lower directory, or two where it has no upper one
        # By descriptor numbers: the options fit one page with any number of layers and any path.
        options = f"lowerdir={':'.join(layers)}"
        if writable:
            options += f",upperdir={numbers[-2]},workdir={numbers[-1]}"
        os.chdir("/proc/self/fd")
        try:
            # volatile: no sync of the whole disk when the container ends. Its files need not survive a power failure, as
            # the container does not either.
            kernel.mount("overlay", target, "overlay", flags, options + (",volatile" if writable else ""))
        except OSError:
            if not writable:
                raise
            kernel.mount("overlay", target, "overlay", flags, options)
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
        mount_overlay(lower, place, 0)
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
