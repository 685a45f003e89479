"""A launcher that is executed for each plan, as the child of the warden that it is to be (launcher/freebsd.c has the reason).

Standard library and kernel binding only.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from cri.sandbox.freebsd import kernel
from cri.sandbox.freebsd.calls import MNT_NOEXEC
from cri.sandbox.launcher.client import NAME, PROGRAM
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR
from cri.sandbox.launcher.plan import Step, encode

_RUNTIME_DIRECTORY = "/var/run"


def open_program(program: Path = PROGRAM, directory: str = _RUNTIME_DIRECTORY) -> int:
    """The launcher's program, of which nobody else has a name, and which no upgrade changes. Raises OSError.

    Nothing leads from a process to the file that it executes, but for its name, which a jail may ask for (kern.proc.pathname)
    and looks up in its own root. A copy that was removed has none. Where no copy can be executed, it is the installed file.
    """
    with contextlib.suppress(OSError):
        if not kernel.mount_of(directory).flags & MNT_NOEXEC:
            return _removed_copy(program, directory)
    return os.open(program, os.O_RDONLY | os.O_CLOEXEC)


def _removed_copy(program: Path, directory: str) -> int:
    path = Path(directory, f"{NAME}-{os.getpid()}")
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o500)
    try:
        with os.fdopen(descriptor, "wb") as copy:
            copy.write(program.read_bytes())
        # What is open for writing cannot be executed.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        path.unlink()


class Launcher:
    """Has plans executed, each by a child of this process."""

    def __init__(self, program: int) -> None:
        """`program` is open: the caller's."""
        self._program = program

    def launch(self, steps: Sequence[Step], descriptors: Sequence[int] = ()) -> socket.socket:
        """Have a plan executed; `descriptors` are FIRST_DESCRIPTOR + 1 and those after it there. Returns the report.

        Raises PlanError and OSError.
        """
        data = encode(steps, 1 + len(descriptors))
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._spawn(data, [theirs.fileno(), *descriptors])
        except BaseException:
            report.close()
            raise
        return report

    def _spawn(self, data: bytes, descriptors: Sequence[int]) -> None:
        plan = os.memfd_create("plan", os.MFD_CLOEXEC)
        try:
            with os.fdopen(plan, "wb", buffering=0, closefd=False) as file:
                written = 0
                while written < len(data):
                    written += file.write(data[written:]) or 0
            kernel.spawn(self._program, NAME, plan, descriptors, FIRST_DESCRIPTOR)
        finally:
            os.close(plan)
