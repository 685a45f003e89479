"""Netlink's messages: datagrams of `struct nlmsghdr`, a fixed header that the type decides, and attributes.

What the types mean differs between netlink's protocols (NETLINK_ROUTE, NETLINK_NETFILTER), so each has a `Dialect`;
what the kernel says to every request, acknowledgements and the ends of dumps, is the same in all. Integers of the
headers are in the machine's byte order unless their layout says otherwise.

Sources: netlink(7); linux/netlink.h; FreeBSD's netlink(4).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import TypeAlias

from cni_plugins.errors import MalformedMessageError
from cni_plugins.netlink.codec import (
    OPAQUE,
    TEXT,
    U32,
    Attributes,
    Header,
    HeaderType,
    Table,
    decode_attributes,
    encode_attributes,
    pack_header,
    padding,
    unpack_header,
)

# Message types that every protocol has.
NOOP, ERROR, DONE = 1, 2, 3

# Flags of nlmsghdr. The second line holds only for NEW*, `DUMP` only for GET*, the last only for ERROR.
REQUEST, MULTI, ACK = 0x1, 0x2, 0x4
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
DUMP = 0x300
CAPPED, ACK_TLVS = 0x100, 0x200

EXTENDED_ACK = Table(text=(1, TEXT), offset=(2, U32), cookie=(3, OPAQUE))

_NLMSGHDR = Struct("=IHHII")
_INT = Struct("=i")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a protocol: a request when we send it, an answer or a notification when the kernel does."""

    type: int
    header: Header
    attributes: Attributes = field(default_factory=dict)
    flags: int = 0
    sequence: int = 0
    port: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The kernel's verdict on the request `sequence`: errno 0 is success, `text` its explanation if any.

    `cookie` is what else the kernel has to say; FreeBSD tells of a link that was created, see `LINK_COOKIE`.
    """

    sequence: int
    errno: int
    text: str = ""
    offset: int | None = None
    cookie: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the dump `sequence`, which failed on the way if errno is not 0."""

    sequence: int
    errno: int = 0


Answer: TypeAlias = Message | Acknowledgement | Done


class Dialect:
    """The messages of one protocol: to every type its header and its attributes."""

    def __init__(self, messages: Mapping[int, tuple[HeaderType, Table]]) -> None:
        self.messages = dict(messages)

    def encode(self, message: Message) -> bytes:
        """Return one message as bytes, padded so that another may follow it in the same datagram.

        Raises MalformedMessageError for a value that does not fit its attribute or header.
        """
        header_type, table = self.messages[message.type]
        try:
            header = pack_header(header_type, message.header)
        except struct.error as error:
            raise MalformedMessageError(f"netlink header {message.header}: {error}") from error
        body = header + encode_attributes(message.attributes, table)
        length = _NLMSGHDR.size + len(body)
        return _NLMSGHDR.pack(length, message.type, message.flags, message.sequence, message.port) + body

    def decode(self, datagram: bytes) -> list[Answer]:
        """Return the messages of one datagram, in their order; types that no table knows are left out.

        Raises MalformedMessageError for lengths that contradict each other and values of the wrong size.
        """
        messages: list[Answer] = []
        offset = 0
        while offset < len(datagram):
            try:
                length, kind, flags, sequence, port = _NLMSGHDR.unpack_from(datagram, offset)
                if not _NLMSGHDR.size <= length <= len(datagram) - offset:
                    raise MalformedMessageError(f"netlink message of type {kind} claims {length} bytes")
                body = datagram[offset + _NLMSGHDR.size : offset + length]
                if kind == ERROR:
                    messages.append(_decode_acknowledgement(flags, sequence, body))
                elif kind == DONE:
                    messages.append(Done(sequence, _errno(body) if body else 0))
                elif kind in self.messages:
                    header_type, table = self.messages[kind]
                    header, rest = unpack_header(header_type, body)
                    messages.append(
                        Message(kind, header, decode_attributes(rest, table), flags, sequence, port)
                    )
            except struct.error as error:
                raise MalformedMessageError(f"netlink message cut short at byte {offset}: {error}") from error
            offset += length + padding(length)
        return messages


def _errno(body: bytes) -> int:
    """Read an error: Linux sends it negated, FreeBSD does not."""
    value: int = _INT.unpack_from(body)[0]
    return abs(value)


def _decode_acknowledgement(flags: int, sequence: int, body: bytes) -> Acknowledgement:
    """Read NLMSG_ERROR: the error, the request's header, its body unless CAPPED, and then the explanation."""
    error = _errno(body)
    request_length = _NLMSGHDR.unpack_from(body, _INT.size)[0]
    if not flags & (ACK_TLVS | CAPPED):
        return Acknowledgement(sequence, error)
    # FreeBSD sets only CAPPED where the sole attribute is the cookie.
    echoed = _NLMSGHDR.size if flags & CAPPED else request_length
    explanation = decode_attributes(body[_INT.size + echoed + padding(echoed) :], EXTENDED_ACK)
    return Acknowledgement(
        sequence,
        error,
        explanation.get("text", ""),
        explanation.get("offset"),
        explanation.get("cookie", b""),
    )
