"""How daemon, spawner and warden talk: JSON messages with descriptors, over unix seqpacket sockets.

Framing only: nothing here knows what a message means. A message is one packet; one that is too big for a packet goes into
an unlinked file, whose descriptor then travels in its place. Text stays within ASCII, so that surrogate escapes
(bytes of users that are not UTF-8) survive. unix(7), cmsg(3), memfd_create(2).
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

VERSION = 2
"""Of what daemon and warden say to each other: a warden outlives the daemon that started it, and its release.

1 has neither attach nor the size of a terminal.
"""
OLDEST = 1
"""The version of the oldest wardens that a daemon can work with: their pods can at least be stopped."""
MAX_PACKET = 32 * 1024 if sys.platform == "linux" else 4 * 1024
"""Bytes of JSON that go as a packet; below the default send buffer of the system (net.local.seqpacket.maxseqpacket)."""
MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes of JSON that a peer accepts at all."""
MAX_DESCRIPTORS = 16
SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path, without the NUL (sun_path is 108 bytes on Linux, 104 on FreeBSD)."""

_XUCRED_PID = 80
_SPILLED = "spilled"
_ID = "id"
_ROOM = 1024 * 1024
"""Bytes of a connection's buffers, each way."""


class ProtocolError(Exception):
    """The peer sent what is no message; the connection is still usable."""


class DescriptorsLostError(ProtocolError):
    """A message whose descriptors do not fit into this process's table (RLIMIT_NOFILE), or are too many.

    `number` is the message's id, if it has one. On FreeBSD such a message is lost as a whole (unix(4), recvmsg(2)).
    """

    def __init__(self, number: object) -> None:
        super().__init__("not all of its descriptors have arrived")
        self.number = number


def encode(message: Message) -> bytes:
    """A message as bytes of ASCII."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def decode(data: bytes) -> Message:
    """The message in `data`. Raises ProtocolError."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"a {type(message).__name__} instead of an object")
    return message


def prepare(channel: socket.socket) -> None:
    """Give a connection room for the messages of a peer that is busy for a while."""
    if sys.platform != "linux":  # there, a socket's own room is ample
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send a message; the caller keeps its descriptors.

    Raises OSError: BlockingIOError if the socket does not block and its buffer is full.
    """
    data = encode(message)
    if len(data) <= MAX_PACKET:
        _send(channel, data, descriptors)
        return
    spilled = _spill(data)
    try:
        header = {_SPILLED: len(data)} | ({_ID: message[_ID]} if _ID in message else {})
        _send(channel, encode(header), [*descriptors, spilled])
    finally:
        os.close(spilled)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message with its descriptors (close-on-exec, the caller's), or None at the end of the connection.

    Raises ProtocolError for a packet that is no message, OSError (BlockingIOError if none is there).
    """
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, ancillary, flags, _ = channel.recvmsg(MAX_PACKET + 1, space, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    received = descriptors.tolist()
    if not data and not received:
        return None
    try:
        if sys.platform != "linux" and data and not flags & socket.MSG_EOR:
            # Bigger than a packet may be, or torn. Linux cuts such a one off, FreeBSD goes on with it.
            _skip_record(channel)
            flags |= socket.MSG_TRUNC
        message = decode(b"" if flags & socket.MSG_TRUNC else data)
        _check_complete(message, flags)
        if _SPILLED in message:
            message = decode(_read(received, message[_SPILLED]))
    except BaseException:
        close_all(received)
        raise
    return message, received


def duplicate(descriptors: Sequence[int]) -> list[int]:
    """Copies of descriptors, close-on-exec. Raises OSError, with none left open."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))  # noqa: PERF401  # what is there must be known when one fails
    except OSError:
        close_all(copies)
        raise
    return copies


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def peer(channel: socket.socket) -> tuple[int, int]:
    """The user and the process at the other end, which is who listens there (SO_PEERCRED, LOCAL_PEERCRED).

    The process is 0 where the kernel does not tell it.
    """
    if sys.platform == "linux":
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        return int(uid), int(pid)
    # struct xucred: u_int cr_version; uid_t cr_uid; short cr_ngroups; gid_t cr_groups[16]; union { void *; pid_t cr_pid; };
    # the union begins where a pointer may (sys/ucred.h).
    told = channel.getsockopt(0, 1, 256)
    (uid,) = struct.unpack_from("I", told, 4)
    return int(uid), int(struct.unpack_from("i", told, _XUCRED_PID)[0]) if len(told) > _XUCRED_PID else 0


def check_path(path: str) -> str:
    """`path`, if a socket can be bound to it. Raises ValueError."""
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise ValueError(
            f"socket path {path} has more than {SOCKET_PATH_LIMIT} bytes: choose a shorter runtime directory"
        )
    return path


def _send(channel: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    # POSIX has the sender say where a record ends. Linux takes every packet for one; FreeBSD 15 joins what is not ended.
    sent = channel.sendmsg([data], ancillary, getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_EOR)
    if sent < len(data):
        # FreeBSD 15 fills the room that there is. A peer that lets so much pile up gets no more from us.
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


def _check_complete(message: Message, flags: int) -> None:
    if flags & socket.MSG_CTRUNC:
        raise DescriptorsLostError(message.get(_ID))


def _skip_record(channel: socket.socket) -> None:
    """Read on to the end of a record, as far as it is there."""
    with contextlib.suppress(BlockingIOError):
        while True:
            data, _, flags, _ = channel.recvmsg(MAX_PACKET, 0, socket.MSG_DONTWAIT)
            if not data or flags & socket.MSG_EOR:
                return


def _spill(data: bytes) -> int:
    descriptor = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read(descriptors: list[int], size: object) -> bytes:
    """The content of a spilled message, whose file is the last descriptor; that is taken off and closed."""
    if not descriptors or not isinstance(size, int) or not 0 <= size <= MAX_MESSAGE:
        raise ProtocolError(f"a spilled message of {size} bytes with {len(descriptors)} descriptors")
    data = bytearray()
    with os.fdopen(descriptors.pop(), "rb", buffering=0) as file:
        while len(data) < size:
            chunk = os.pread(file.fileno(), size - len(data), len(data))
            if not chunk:
                raise ProtocolError("a spilled message that ends early")
            data += chunk
    return bytes(data)
