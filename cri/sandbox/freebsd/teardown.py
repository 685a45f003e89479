"""Takes a container's mounts away.

They are the node's, and outlive the daemon that made them. Each lies below its container's directory, so no note is needed
of what there is: the kernel tells, in the order in which they were made.

Mount points that were made stay: those in the root go with it, and those in a volume may by now be somebody else's too.
To remove them would take a neighbour's mount away that shares the volume.
"""

from __future__ import annotations

import errno
import time

from cri.sandbox.freebsd.calls import Calls, Mount
from cri.sandbox.host import HostError

_UNMOUNT_SECONDS = 2.0
_UNMOUNT_PAUSE = 0.02


def take_down(calls: Calls, directory: str, root: str, *, force: bool = False) -> None:
    """Unmount all that lies below a container's directory, the last first, but its root itself.

    Succeeds on what is gone. What stays busy for two seconds is taken away by force, or at once with `force`: no process
    of the container is left. Raises HostError; what was done by then need not be done again.
    """
    until = time.monotonic() + (0 if force else _UNMOUNT_SECONDS)
    for mount in reversed(mounts_below(calls, directory)):
        if not _is_root(mount, root):
            _unmount(calls, mount, until)


def mounts_below(calls: Calls, directory: str) -> list[Mount]:
    """The mounts on a directory and below it, in the order in which they were made."""
    return [mount for mount in calls.mounts() if f"{mount.target}/".startswith(f"{directory.rstrip('/')}/")]


def _is_root(mount: Mount, root: str) -> bool:
    """Whether a mount is the snapshotter's, which takes it away itself."""
    return mount.target == root and mount.kind == "zfs"


def _unmount(calls: Calls, mount: Mount, until: float) -> None:
    while True:
        force = time.monotonic() >= until
        try:
            calls.unmount(mount, force=force)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return  # somebody else was quicker
            if error.errno != errno.EBUSY or force:
                raise HostError("unmount", mount.target, error.strerror or str(error), error.errno) from error
            time.sleep(_UNMOUNT_PAUSE)
        else:
            return
