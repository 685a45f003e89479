"""Namespaces of our own, so that a run neither disturbs the machine nor is disturbed by it (Linux).

Host ports, bridges, packet filter rules, mounts and System V IPC of the run live and die in them; "the
host" that host-network and host-IPC specs look at is this pair of namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

# unshare(2), mount(2), netdevice(7)
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x40000000
_MS_REC, _MS_PRIVATE, _MS_SHARED = 1 << 14, 1 << 18, 1 << 20
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def isolate() -> None:
    """Move this (single-threaded) process into mount, network and IPC namespaces of its own.

    Raises:
        OSError: without the privilege (CAP_SYS_ADMIN).

    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC):
        raise OSError(ctypes.get_errno(), "cannot make namespaces (unshare); run as root")
    # Private first, so that nothing propagates back; then shared among ourselves, as on a real node,
    # where volumes may ask for propagation.
    for propagation in (_MS_PRIVATE, _MS_SHARED):
        if libc.mount(None, b"/", None, _MS_REC | propagation, None):
            error = ctypes.get_errno()
            raise OSError(error, f"cannot change the propagation of /: {os.strerror(error)}")
    _bring_up("lo")


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", interface.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags | _IFF_UP))
