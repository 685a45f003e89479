"""Sysctls of a pod: only those that a namespace of its own has, so that no pod changes the node."""

from __future__ import annotations

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


def _check(name: str, path: str, namespaces: Namespaces) -> None:
    if path.startswith("net/"):
        shared = namespaces.network is Sharing.NODE
    elif path.startswith(_IPC) or path in _IPC_NAMES:
        shared = namespaces.ipc is Sharing.NODE
    else:
        raise HostError("set", f"sysctl {name}", "it is not namespaced, so it would change the node")
    if shared:
        raise HostError("set", f"sysctl {name}", "the pod shares this namespace with the node")
