"""FreeBSD: what its netlink(4) has no message for, by ioctl(2) on one socket of a network stack.

Names, moves between stacks, link-layer addresses, groups and membership of bridges; and sysctl(3). Sources: netintro(4),
epair(4), if_bridge(4), sys/net/if.c and sys/net/if_bridge.c of FreeBSD 15.1.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Any, Self

from cni_plugins.errors import KernelError
from cni_plugins.freebsd._kernel import ffi, lib
from cni_plugins.types import SocketSource

# The kernel looks whether a new name is free and takes it in two steps with nothing in between to keep others away.
_renaming = Lock()
_MOVE_FAILURES = {
    errno.ENXIO: "the jail or the interface is gone, make the pod anew",
    errno.EEXIST: "the jail is no VNET jail, or has an interface of that name",
}


class Interfaces:
    """The interfaces of the stack that the given socket was made in.

    It owns the socket: use it as a context manager. Every method blocks and raises KernelError.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def of(cls, stack: SocketSource, family: int = socket.AF_UNIX) -> Self:
        """Return a client on a new socket made inside a stack; any family serves, unless a method says otherwise."""
        try:
            sock = stack.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, "make", "a socket for interface ioctls") from error
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def rename(self, name: str, new: str) -> None:
        """Give an interface another name; EEXIST if that is taken."""
        with _renaming:
            self._call(lib.cni_rename, f"rename to {new}", f"interface {name}", name, new)

    def destroy(self, name: str) -> None:
        """Destroy an interface that was created, and of an epair(4) both ends wherever they are; ENXIO without it."""
        self._call(lib.cni_destroy, "delete", f"interface {name}", name)

    def move(self, name: str, jid: int) -> None:
        """Move an interface into a VNET jail; the socket must be of the stack that the caller itself is in.

        ENXIO if interface or jail is gone; EEXIST if the jail has an interface of that name, or no stack of its own.
        """
        try:
            self._call(lib.cni_move, f"move to jail {jid}", f"interface {name}", name, jid)
        except KernelError as error:
            text = _MOVE_FAILURES.get(error.errno)
            if text is None:
                raise
            raise KernelError(error.errno, error.operation, error.object, text) from error

    def set_mac(self, name: str, mac: str) -> None:
        """Set the link-layer address, written as aa:bb:cc:dd:ee:ff."""
        octets = bytes.fromhex(mac.replace(":", ""))
        if len(octets) != 6:
            raise ValueError(f"{mac!r} has not six octets")
        self._call(lib.cni_set_mac, f"set the MAC {mac} of", f"interface {name}", name, octets)

    def set_mtu(self, name: str, mtu: int) -> None:
        """Set the MTU in bytes. The first member of a bridge passes its own on to it, later ones take the bridge's."""
        self._call(lib.cni_set_mtu, f"set the MTU {mtu} of", f"interface {name}", name, mtu)

    def set_promiscuous(self, name: str, *, on: bool) -> None:
        """Have an interface take whatever passes, or no longer; it goes on while somebody else wants it."""
        self._call(lib.cni_set_promiscuous, "set promiscuity of", f"interface {name}", name, int(on))

    def set_all_multicast(self, name: str, *, on: bool) -> None:
        """Have an interface take all multicast, or no longer; likewise. EOPNOTSUPP before FreeBSD knew of it."""
        self._call(lib.cni_set_all_multicast, "set all-multicast of", f"interface {name}", name, int(on))

    def disable_ipv6(self, name: str) -> None:
        """See to it that an interface gets no IPv6 address by itself. The socket must be of AF_INET6."""
        self._call(lib.cni_disable_ipv6, "disable IPv6 on", f"interface {name}", name)

    def listens(self, name: str) -> bool:
        """Tell whether an interface takes routers from advertisements. The socket must be of AF_INET6."""
        return bool(self._call(lib.cni_listens, "read the flags of", f"interface {name}", name))

    def ignore_advertisements(self, name: str, *, fresh: bool = False) -> None:
        """Have an interface take no router from advertisements. The socket must be of AF_INET6.

        A `fresh` one that would have taken some has no IPv6 until it is given an address, as those that would not; and none of its
        addresses is looked for elsewhere before it is used.
        """
        what = f"interface {name}"
        self._call(lib.cni_ignore_advertisements, "refuse router advertisements on", what, name, int(fresh))

    def join_group(self, name: str, group: str) -> None:
        """Put an interface in a group, by which pf.conf(5) and ifconfig(8) can name all its members."""
        self._call(lib.cni_join_group, f"put in group {group}", f"interface {name}", name, group)

    def group(self, name: str) -> list[str]:
        """Return the members of a group; none if there is no such group. Every bridge is in the group `bridge`."""
        return self._names(lib.cni_group_members, "list", f"interface group {name}", name)

    def bridge_add(self, bridge: str, member: str) -> None:
        """Put an interface in a bridge; ENXIO without the bridge, EBUSY if it is in another one."""
        self._call(lib.cni_bridge_add, f"add {member} to", f"bridge {bridge}", bridge, member)

    def bridge_delete(self, bridge: str, member: str) -> None:
        """Take an interface out of a bridge; ENOENT if it is not in there, ENXIO without the bridge."""
        self._call(lib.cni_bridge_delete, f"take {member} out of", f"bridge {bridge}", bridge, member)

    def bridge_isolate(self, bridge: str, member: str) -> None:
        """Keep a member from all other members that are isolated too."""
        self._call(lib.cni_bridge_isolate, f"isolate {member} in", f"bridge {bridge}", bridge, member)

    def bridge_members(self, bridge: str) -> list[str]:
        """Return the members of a bridge; ENXIO without it."""
        return self._names(lib.cni_bridge_members, "list the members of", f"bridge {bridge}", bridge)

    def _call(
        self, function: Callable[..., int], operation: str, what: str, *arguments: str | bytes | int
    ) -> int:
        encoded: list[Any] = [os.fsencode(a) if isinstance(a, str) else a for a in arguments]
        result = function(self._sock.fileno(), *encoded)
        if result < 0:
            raise KernelError(ffi.errno, operation, what)
        return result

    def _names(self, function: Callable[..., int], operation: str, what: str, name: str) -> list[str]:
        room = 64
        while True:
            names = ffi.new("char[]", room * lib.IFNAMSIZ)

            def fill(fd: int, subject: bytes, names: Any = names, room: int = room) -> int:
                return function(fd, subject, names, room)

            count = self._call(fill, operation, what, name)
            if count <= room:
                raw = bytes(ffi.buffer(names))
                size = lib.IFNAMSIZ
                found = (raw[start : start + size].rstrip(b"\0") for start in range(0, count * size, size))
                return [os.fsdecode(each) for each in found if each]
            room = 2 * count


def sysctl_read(name: str) -> int:
    """Return an integer parameter of the stack that the process is in, see sysctl(3). Raises KernelError."""
    value = ffi.new("int *")
    if lib.cni_sysctl_read(name.encode(), value) != 0:
        raise KernelError(ffi.errno, "read", f"sysctl {name}")
    return int(value[0])


def sysctl_write(name: str, value: int) -> None:
    """Set an integer parameter of the stack that the process is in. Raises KernelError."""
    if lib.cni_sysctl_write(name.encode(), value) != 0:
        raise KernelError(ffi.errno, f"set to {value}", f"sysctl {name}")
