"""Kernel failures: makes calls of this process raise OSError now and then, for a daemon and its wardens that must bear it."""

from __future__ import annotations

import errno
import functools
import importlib
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

from cni_plugins.errors import KernelError

ERRORS = (errno.EIO, errno.ENOMEM, errno.EBUSY, errno.EAGAIN, errno.ENOSPC, errno.EMFILE)

DAEMON = {
    "linux": (
        ("cri.sandbox.linux.cgroup_files", "write"),
        ("cri.sandbox.linux.cgroup_tree", "_rmdir"),
        ("cri.sandbox.small_files", "write"),
        ("cri.sandbox.linux.snapshots", "_copy_top"),
        ("cni_plugins.netlink.client", "Client.exchange"),
    ),
    "freebsd": (
        *(
            ("cri.sandbox.freebsd.kernel", name)
            for name in (
                *("jail_create", "jail_update", "jail_find", "jails", "jail_remove"),
                *("mount", "unmount", "mounts", "devfs_apply", "rctl_add", "rctl_remove", "processes"),
            )
        ),
        ("cri.sandbox.small_files", "write"),
        ("cni_plugins.freebsd.ioctl", "Interfaces._call"),
        ("cni_plugins.freebsd.pf", "Pf.replace"),
    ),
}
"""Where the daemon meets its kernel, by system."""


class Failing:
    """Wraps calls so that one in so many raises instead of being made."""

    def __init__(self, one_in: int, seed: int) -> None:
        self._one_in = one_in
        self._random = random.Random(seed)

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def maybe(*arguments: Any, **named: Any) -> Any:
            if self._random.randrange(self._one_in) == 0:
                number = self._random.choice(ERRORS)
                if name.startswith("cni_plugins."):  # whose lowest calls speak of the kernel already
                    raise KernelError(number, "injected into", name)
                raise OSError(number, f"injected into {name}")
            return function(*arguments, **named)

        return maybe

    def patch(self, places: Iterable[tuple[str, str]]) -> None:
        """Have these fail, by module and name. A name that is not there is a mistake of the list."""
        for module, path in places:
            *parents, name = path.split(".")
            holder: Any = importlib.import_module(module)
            for parent in parents:
                holder = getattr(holder, parent)
            setattr(holder, name, self.wrap(getattr(holder, name), f"{module}.{path}"))


def system() -> str:
    """linux or freebsd."""
    return sys.platform.rstrip("0123456789")
