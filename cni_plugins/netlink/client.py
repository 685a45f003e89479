"""A conversation with one network stack's kernel over one blocking netlink socket, of whatever protocol.

Several requests may go to the kernel in one datagram: it works them off in order and acknowledges each. It does not
stop at one that it refuses, so only requests that hurt nobody after a refusal travel together.

Sources: netlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from cni_plugins.errors import KernelError
from cni_plugins.netlink.messages import (
    ACK,
    DUMP,
    REQUEST,
    Acknowledgement,
    Answer,
    Dialect,
    Message,
)
from cni_plugins.types import SocketSource

# CPython knows the family only where it was built with the right header; FreeBSD's number is 38.
AF_NETLINK: int = getattr(socket, "AF_NETLINK", 38 if sys.platform.startswith("freebsd") else 16)
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_ANSWER_TIMEOUT = struct.pack("@ll", 10, 0)  # struct timeval; only a kernel with a stuck lock takes so long
_BUFFER = 1 << 16  # the kernel fills at most 32 KiB per datagram of a dump


class Request(NamedTuple):
    """A message with the words for its failure: cannot <operation> <object>."""

    message: Message
    operation: str
    object: str


class Answers(NamedTuple):
    """Of a batch: the messages that it asked for, and the verdict on every request, in the kernel's order."""

    messages: list[Message]
    verdicts: list[Acknowledgement]


class UnansweredError(KernelError):
    """The kernel took a request, and what it said to it got lost: it may have done it or not."""


class Client:
    """Speaks one dialect with the stack that the socket was made in.

    Use it as a context manager: it owns a socket. One thread at a time; calls block until the kernel has answered, ten
    seconds at most. Every method raises KernelError with the kernel's own words.
    """

    def __init__(self, stack: SocketSource, protocol: int, dialect: Dialect) -> None:
        self._dialect = dialect
        self._sequence = 0
        try:
            self._sock = stack.socket(
                AF_NETLINK, socket.SOCK_RAW | getattr(socket, "SOCK_CLOEXEC", 0), protocol
            )
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, "make", "a netlink socket") from error
        try:
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        except OSError as error:
            self._sock.close()
            raise KernelError(error.errno or errno.EIO, "prepare", "a netlink socket") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; may be repeated."""
        self._sock.close()

    def ask(self, *requests: Request) -> list[Message]:
        """Send requests in one datagram; return what answers them, once every one has its verdict.

        Raises KernelError for the first refusal.
        """
        return self.exchange(*requests).messages

    def exchange(self, *requests: Request) -> Answers:
        """As `ask`, for whoever wants to read the verdicts, too."""
        pending: dict[int, Request] = {}
        datagram = b""
        for request in requests:
            datagram += self._encode(request, REQUEST | ACK)
            pending[self._sequence] = request
        first = requests[0]
        self._send(datagram, first)
        answers = Answers([], [])
        failures: list[KernelError] = []
        while pending:
            for answer in self._receive(first):
                if answer.sequence not in pending:
                    continue
                if isinstance(answer, Message):
                    answers.messages.append(answer)
                elif isinstance(answer, Acknowledgement):
                    answers.verdicts.append(answer)
                    request = pending.pop(answer.sequence)
                    if answer.errno:
                        failures.append(refusal(request, answer))
        if failures:
            raise failures[0]
        return answers

    def dump(self, request: Request) -> Iterator[Message]:
        """Yield all that the kernel has of something."""
        self._send(self._encode(request, REQUEST | DUMP), request)
        while True:
            for answer in self._receive(request):
                if answer.sequence != self._sequence:
                    continue
                if isinstance(answer, Message):
                    yield answer
                    continue
                if answer.errno:
                    text = answer.text if isinstance(answer, Acknowledgement) else ""
                    raise KernelError(answer.errno, request.operation, request.object, text)
                return

    def _encode(self, request: Request, flags: int) -> bytes:
        """Return a request as bytes, with a number of its own, which `_sequence` then is."""
        self._sequence += 1
        flags |= request.message.flags
        return self._dialect.encode(replace(request.message, flags=flags, sequence=self._sequence))

    def _send(self, datagram: bytes, request: Request) -> None:
        try:
            self._sock.send(datagram)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, request.operation, request.object) from error

    def _receive(self, request: Request) -> list[Answer]:
        try:
            return self._dialect.decode(self._sock.recv(_BUFFER))
        except OSError as error:
            number = errno.ETIMEDOUT if isinstance(error, BlockingIOError) else error.errno or errno.EIO
            raise UnansweredError(number, request.operation, request.object) from error


def refusal(request: Request, verdict: Acknowledgement) -> KernelError:
    """Return the error for a request that the kernel has refused."""
    return KernelError(verdict.errno, request.operation, request.object, verdict.text)
