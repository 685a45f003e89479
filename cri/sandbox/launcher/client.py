"""The warden's side of a launcher: starting it from a copy that nobody can change, and giving it plans.

Standard library only.
"""

from __future__ import annotations

import array
import enum
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cri.sandbox.launcher.operations import MAX_DESCRIPTORS
from cri.sandbox.launcher.plan import PlanError, Step, encode

NAME = "cri-jails-launcher"
"""What ps shows."""
PROGRAM = Path(__file__).with_name("launcher")
"""The executable, compiled at install."""
_PACKET = 32 * 1024
"""Bytes of the largest plan that is sent in the message itself: not above PACKET in launcher.c, and what a socket has room for."""
_CONTROL = 3
"""Where a launcher has its socket."""
_LARGE = struct.Struct("=II")
_LARGE_MAGIC = 0x4C495247
RECORD = struct.Struct("=4i")
"""What a launch tells: `Record`, in its order."""


class Kind(enum.IntEnum):
    """What a process on its way tells."""

    SENT = 1
    """A descriptor: what the step was to send."""
    BORN = 2
    """The newcomer's pid."""
    FAILED = 3
    """Which step, and why; step -1 is the plan itself."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is told of a launch."""

    kind: Kind
    step: int
    error: int
    pid: int


class Launcher:
    """A launcher process of Linux, child of this one. It ends with the connection, and with its parent; one that was killed comes back."""

    def __init__(self, program: Path | bytes = PROGRAM) -> None:
        """Start it; `program` is its executable, or what is in that. Raises OSError."""
        # For as long as there is a pod: its launcher is of this release, whatever becomes of the file.
        self._program = _sealed_copy(program if isinstance(program, bytes) else program.read_bytes())
        self.pid = 0
        self._channel: socket.socket | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def launch(self, steps: Sequence[Step], descriptors: Sequence[int] = ()) -> socket.socket:
        """Have a plan executed; `descriptors` are FIRST_DESCRIPTOR + 1 and those after it there. Returns the report.

        Raises PlanError and OSError.
        """
        data = encode(steps, 1 + len(descriptors))
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                given = [theirs.fileno(), *descriptors]
                try:
                    self._send(data, given)
                except ConnectionError:  # somebody killed it; what it had begun goes on without it
                    self._start()
                    self._send(data, given)
        except BaseException:
            report.close()
            raise
        return report

    def close(self) -> None:
        """Let it end."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL)]
                path = f"/proc/self/fd/{self._program}"
                self.pid = os.posix_spawn(path, [NAME], {}, file_actions=actions)
        except BaseException:
            ours.close()
            raise
        if self._channel is not None:
            self._channel.close()
        self._channel = ours

    def _send(self, data: bytes, descriptors: list[int]) -> None:
        if len(data) <= _PACKET:
            self._send_message(data, descriptors)
            return
        large = os.memfd_create("plan", os.MFD_CLOEXEC)
        try:
            _write_all(large, data)
            self._send_message(_LARGE.pack(_LARGE_MAGIC, len(data)), [*descriptors, large])
        finally:
            os.close(large)

    def _send_message(self, data: bytes, descriptors: list[int]) -> None:
        if self._channel is None:
            raise OSError(errno.ENOTCONN, "the launcher was closed")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._channel.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(report: socket.socket) -> tuple[Record, int] | None:
    """What a launch tells next, with its descriptor (or -1); None at the end.

    Who can trace a newcomer may write there, too: PlanError for what is no record. Raises OSError.
    """
    data, ancillary, _, _ = report.recvmsg(
        RECORD.size + 1, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    )
    received = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
    if not data and not received:
        return None
    try:
        number, step, error, pid = RECORD.unpack(data)
        record = Record(Kind(number), step, error, pid)
        if len(received) != (record.kind is Kind.SENT):
            raise PlanError(f"{record} with {len(received)} descriptors")
    except (struct.error, ValueError) as error:
        for descriptor in received:
            os.close(descriptor)
        raise PlanError(f"no record of a launch: {error}") from None
    return record, received[0] if received else -1


def _sealed_copy(program: bytes) -> int:
    """An executable in memory that nobody can change: memfd_create(2), F_ADD_SEALS."""
    made = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Not where the launcher gets its socket.
        copy = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _CONTROL + 1)
    finally:
        os.close(made)
    try:
        _write_all(copy, program)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
