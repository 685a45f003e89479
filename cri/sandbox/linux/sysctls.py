"""Sysctls of a pod: only those that a namespace of its own has, so that no pod changes the node."""

from __future__ import annotations

import errno

from cri.sandbox.host import HostError
from cri.sandbox.spec import Namespaces, Sharing

_IPC = ("kernel/shm", "kernel/msg", "fs/mqueue/")
_IPC_NAMES = ("kernel/sem",)


def path_of(name: str) -> str:
    """The path of a sysctl below /proc/sys.

    The first separator decides, as in sysctl.d(5): with a dot, dots and slashes change places.
    """
    dot, slash = name.find("."), name.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        name = name.translate(str.maketrans("./", "/."))
    if not all(part not in ("", ".", "..") for part in name.split("/")):
        raise HostError("set", f'sysctl "{name}"', "this is not the name of a sysctl")
    return name


def write(sysctls: dict[str, str], namespaces: Namespaces) -> None:
    """Set sysctls from inside the pod's namespaces. Raises HostError."""
    for name, value in sysctls.items():
        path = path_of(name)
        _check(name, path, namespaces)
        try:
            with open(f"/proc/sys/{path}", "w") as file:  # noqa: PTH123
                file.write(value)
        except OSError as error:
            reason = error.strerror or str(error)
            raise HostError("set", f"sysctl {name} to {value!r}", reason, error.errno) from error


def network_variable(name: str, value: str | None) -> str:
    """A variable of the caller's network namespace, and with a value, its value before that was set. Raises HostError."""
    operation = "read" if value is None else "set"
    path = path_of(name)
    if not path.startswith("net/"):
        raise HostError(operation, f"sysctl {name}", "only net.* belongs to a pod's network", errno.EPERM)
    try:
        with open(f"/proc/sys/{path}", "r" if value is None else "r+") as file:  # noqa: PTH123
            before = file.read().strip()
        if value is not None:
            # Anew: such a file takes a value at its beginning only (proc_sys(5), sysctl_writes_strict).
            with open(f"/proc/sys/{path}", "w") as file:  # noqa: PTH123
                file.write(value)
    except OSError as error:
        raise HostError(operation, f"sysctl {name}", error.strerror or str(error), error.errno) from error
    except ValueError as error:  # text that is no UTF-8, or has a zero in the name
        raise HostError(operation, f"sysctl {name}", str(error), errno.EINVAL) from error
    return before


def _check(name: str, path: str, namespaces: Namespaces) -> None:
    if path.startswith("net/"):
        shared = namespaces.network is Sharing.NODE
    elif path.startswith(_IPC) or path in _IPC_NAMES:
        shared = namespaces.ipc is Sharing.NODE
    else:
        raise HostError("set", f"sysctl {name}", "it is not namespaced, so it would change the node")
    if shared:
        raise HostError("set", f"sysctl {name}", "the pod shares this namespace with the node")
