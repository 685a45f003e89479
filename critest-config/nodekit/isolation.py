"""Namespaces of our own, so that a run neither disturbs the machine nor is disturbed by it (Linux).

Host ports, bridges, packet filter rules, mounts, cgroups and System V IPC of the run live and die in them;
"the host" that host-network and host-IPC specs look at are these namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

from nodekit import cgroups

# unshare(2), mount(2), netdevice(7)
_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWIPC, _CLONE_NEWNET = 0x00020000, 0x02000000, 0x08000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SHARED = 1 << 12, 1 << 14, 1 << 18, 1 << 20
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def subtree_of(supervisor: int) -> str:
    """Return the name of the cgroup subtree of the run whose supervisor has this process id."""
    return f"critest-{supervisor}"


def isolate() -> None:
    """Move this process, single-threaded and a child of its supervisor, into namespaces of its own.

    Raises:
        OSError: without the privilege (CAP_SYS_ADMIN).

    """
    cgroups.enter(subtree_of(os.getppid()), _unshare, lambda source, target: _mount(target, _MS_BIND, source))
    # Shared among ourselves, as on a real node, where volumes may ask for propagation.
    _mount(Path("/"), _MS_REC | _MS_SHARED)
    _bring_up("lo")


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWNET | _CLONE_NEWIPC):
        raise OSError(ctypes.get_errno(), "cannot make namespaces (unshare); run as root")
    _mount(Path("/"), _MS_REC | _MS_PRIVATE)  # nothing that is mounted from here on propagates back


def _mount(target: Path, flags: int, source: Path | None = None) -> None:
    if _libc.mount(source and os.fsencode(source), os.fsencode(target), None, flags, None):
        error = ctypes.get_errno()
        raise OSError(
            error, f"cannot mount {source or 'with other propagation'}: {os.strerror(error)}", target
        )


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", interface.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags | _IFF_UP))
