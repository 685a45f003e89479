"""Sysctls of a pod: only those that a namespace of its own has, so that no pod changes the node.

Those of an interface are there when it is, so they are set when the pod is attached to its network; the others before.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.spec import Namespaces, Sharing

_IPC = ("kernel/shm", "kernel/msg", "fs/mqueue/")
_IPC_NAMES = ("kernel/sem",)
_OF_INTERFACES = ("conf", "neigh")
_ALWAYS_THERE = ("all", "default", "lo")
_MOST_NAME = 15  # bytes: IFNAMSIZ without the final zero
_THE_VALUE_S = frozenset({errno.EINVAL, errno.ERANGE, errno.E2BIG})
_UNREADABLE = frozenset({errno.EIO, errno.EPERM, errno.EACCES})  # what has no value yet, or takes orders only


def path_of(name: str) -> str:
    """The path of a sysctl below /proc/sys.

    The first separator decides, as in sysctl.d(5): with a dot, dots and slashes change places. Raises UnfitRequestError.
    """
    dot, slash = name.find("."), name.find("/")
    path = name
    if dot >= 0 and (slash < 0 or dot < slash):
        path = name.translate(str.maketrans("./", "/."))
    if "\0" in name or not all(part not in ("", ".", "..") for part in path.split("/")):
        raise UnfitRequestError("set", f'sysctl "{name}"', "this is not the name of a sysctl", errno.EINVAL)
    return path


def interface_of(name: str) -> str:
    """The interface that a sysctl is of; empty if it is of none, or of one that every network has. Raises UnfitRequestError."""
    parts = path_of(name).split("/")
    of_one = len(parts) > 4 and parts[0] == "net" and parts[2] in _OF_INTERFACES
    return parts[3] if of_one and parts[3] not in _ALWAYS_THERE else ""


def of_interfaces(sysctls: Mapping[str, str]) -> dict[str, str]:
    """Those that can only be set when the pod has its interfaces."""
    return {name: value for name, value in sysctls.items() if interface_of(name)}


def no_interface(name: str) -> UnfitRequestError:
    """The error for a sysctl of an interface that has not come."""
    reason = (
        f'the pod has no interface "{interface_of(name)}" on its network; name the one that it has, as eth0'
    )
    return UnfitRequestError("set", f"sysctl {name}", reason, errno.ENODEV)


def check(sysctls: Mapping[str, str], namespaces: Namespaces) -> None:
    """Refuse what no pod may have, or cannot have with these namespaces. Raises UnfitRequestError."""
    seen: dict[str, tuple[str, str]] = {}
    for name, value in sysctls.items():
        path = path_of(name)
        _check(name, path, namespaces)
        if len(interface_of(name).encode(errors="surrogateescape")) > _MOST_NAME:
            reason = f"no interface has a name of more than {_MOST_NAME} bytes"
            raise UnfitRequestError("set", f"sysctl {name}", reason, errno.ENAMETOOLONG)
        other, its = seen.setdefault(path, (name, value))
        if its != value:
            raise UnfitRequestError(
                "set", f"sysctl {name} to {value!r}", f"{other}, the same, is {its!r}", errno.EINVAL
            )


def write(sysctls: Mapping[str, str], namespaces: Namespaces) -> None:
    """Set sysctls from inside the pod's namespaces, but for those of interfaces. Raises HostError, UnfitRequestError."""
    check(sysctls, namespaces)
    for name, value in sysctls.items():
        if interface_of(name):
            continue
        try:
            with open(f"/proc/sys/{path_of(name)}", "w") as file:  # noqa: PTH123
                file.write(value)
        except OSError as error:
            raise _explained(f"sysctl {name} to {value!r}", error) from error


def network_variable(name: str, value: str | None) -> str:
    """A variable of the caller's network namespace, and with a value, its value before that was set.

    What cannot be read, and yet be set, was nothing before. Raises HostError, UnfitRequestError.
    """
    operation = "read" if value is None else "set"
    path = path_of(name)
    if not path.startswith("net/"):
        raise HostError(operation, f"sysctl {name}", "only net.* belongs to a pod's network", errno.EPERM)
    try:
        try:
            with open(f"/proc/sys/{path}") as file:  # noqa: PTH123
                before = file.read().strip()
        except OSError as error:
            if value is None or error.errno not in _UNREADABLE:
                raise
            before = ""
        if value is not None:
            # Anew: such a file takes a value at its beginning only (proc_sys(5), sysctl_writes_strict).
            with open(f"/proc/sys/{path}", "w") as file:  # noqa: PTH123
                file.write(value)
    except OSError as error:
        if value is not None:
            raise _explained(f"sysctl {name} to {value!r}", error) from error
        raise HostError(operation, f"sysctl {name}", error.strerror or str(error), error.errno) from error
    except ValueError as error:  # text that is no UTF-8, or has a zero in the name
        raise HostError(operation, f"sysctl {name}", str(error), errno.EINVAL) from error
    return before


def _explained(what: str, error: OSError) -> HostError:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return UnfitRequestError(
            "set", what, "this kernel has no such sysctl for a pod; leave it out", error.errno
        )
    if error.errno in _THE_VALUE_S:
        return UnfitRequestError("set", what, f"{reason}: the kernel does not take this value", error.errno)
    return HostError("set", what, reason, error.errno)


def _check(name: str, path: str, namespaces: Namespaces) -> None:
    if path.startswith("net/"):
        shared = namespaces.network is Sharing.NODE
    elif path.startswith(_IPC) or path in _IPC_NAMES:
        shared = namespaces.ipc is Sharing.NODE
    else:
        raise UnfitRequestError(
            "set", f"sysctl {name}", "it is not namespaced, so it would change the node", errno.EPERM
        )
    if shared:
        raise UnfitRequestError(
            "set", f"sysctl {name}", "the pod shares this namespace with the node", errno.EPERM
        )
