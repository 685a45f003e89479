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
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cni_plugins.errors import KernelError
from cni_plugins.types import OwnStack, SocketSource

_SIOCGSKNS = 0x894C
_CLONE_NEWNET = 0x40000000
_SYS = Path("/proc/sys")
_PROTECTED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NOT_THERE = frozenset({errno.ENOENT, errno.ENODEV})
_HELP = "set it beforehand, or run where /proc/sys can be written to"

_Result = TypeVar("_Result")


def read(stack: SocketSource, name: str) -> str:
    """Return a parameter, such as net.ipv4.ip_forward, without the line's end. Raises KernelError."""
    return _inside(stack, "read", name, lambda path: path.read_text().rstrip("\n"))


def write(stack: SocketSource, name: str, value: str) -> None:
    """Set a parameter. Raises KernelError: EROFS where /proc/sys is mounted read-only, as in most containers."""
    _inside(stack, f"set to {value}", name, lambda path: path.write_text(value))


def settle(stack: SocketSource, wanted: Mapping[str, str], *, instead_of: str | None = None) -> None:
    """Set those of some parameters that have another value; with `instead_of` only those that have this one.

    What has gone meanwhile, or never was in this kernel, is passed over. Raises KernelError.
    """

    def work() -> None:
        for name, value in wanted.items():
            with _explained(f"set to {value}", name, passing=_NOT_THERE):
                file = path(name)
                present = file.read_text().strip()
                if present != value and instead_of in (None, present):
                    file.write_text(value)

    _within(stack, work, f"set {', '.join(wanted)}")


def path(name: str) -> Path:
    """Return the file of a parameter. As sysctl(8) has it, a slash in a name stands for a dot, and a dot for a slash."""
    first = next((character for character in name if character in "./"), ".")
    return _SYS / (name if first == "/" else name.translate(str.maketrans("./", "/.")))


def _inside(stack: SocketSource, operation: str, name: str, work: Callable[[Path], _Result]) -> _Result:
    """Do something to a parameter's file."""

    def run() -> _Result:
        with _explained(operation, name):
            return work(path(name))

    return _within(stack, run, f"{operation} sysctl {name}")


def _within(stack: SocketSource, work: Callable[[], _Result], what: str) -> _Result:
    """Do something in a namespace: in a thread of its own, which ends there, unless it is that of this process."""
    if isinstance(stack, OwnStack):
        return work()
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            _enter(stack)
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="cni-sysctl").start()
    try:
        return done.result()
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, "enter", f"a network stack to {what}") from error


@contextmanager
def _explained(operation: str, name: str, *, passing: Collection[int] = ()) -> Iterator[None]:
    """Say of which parameter an error is, or nothing if it is one to be passed over."""
    try:
        yield
    except OSError as error:
        if error.errno in passing:
            return
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
