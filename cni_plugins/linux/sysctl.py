"""Kernel parameters of a network stack that is reached by its sockets only.

What /proc/sys/net shows depends on the namespace of the thread that looks, so a thread goes there: the kernel gives a
namespace to whoever has a socket of it. Sources: ioctl SIOCGSKNS in net/socket.c; setns(2); proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from cni_plugins.errors import KernelError
from cni_plugins.types import SocketSource

_SIOCGSKNS = 0x894C
_CLONE_NEWNET = 0x40000000
_SYS = Path("/proc/sys")
_PROTECTED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_HELP = "set it beforehand, or run where /proc/sys can be written to"

_Result = TypeVar("_Result")


def read(stack: SocketSource, name: str) -> str:
    """Return a parameter, such as net.ipv4.ip_forward, without the line's end. Raises KernelError."""
    return _inside(stack, "read", name, lambda path: path.read_text().rstrip("\n"))


def write(stack: SocketSource, name: str, value: str) -> None:
    """Set a parameter. Raises KernelError: EROFS where /proc/sys is mounted read-only, as in most containers."""
    _inside(stack, f"set to {value}", name, lambda path: path.write_text(value))


def path(name: str) -> Path:
    """Return the file of a parameter. As sysctl(8) has it, a slash in a name stands for a dot, and a dot for a slash."""
    first = next((character for character in name if character in "./"), ".")
    return _SYS / (name if first == "/" else name.translate(str.maketrans("./", "/.")))


def _inside(stack: SocketSource, operation: str, name: str, work: Callable[[Path], _Result]) -> _Result:
    """Do something to a parameter's file in a thread of its own, which ends inside the namespace."""
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            _enter(stack)
            done.set_result(work(path(name)))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="cni-sysctl").start()
    try:
        return done.result()
    except OSError as error:
        text = _HELP if error.errno in _PROTECTED else ""
        raise KernelError(error.errno or errno.EIO, operation, f"sysctl {name}", text) from error


def _enter(stack: SocketSource) -> None:
    with stack.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0) as sock:
        namespace = fcntl.ioctl(sock, _SIOCGSKNS)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(namespace)
