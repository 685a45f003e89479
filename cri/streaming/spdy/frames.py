"""The frames of SPDY/3.1 (SPDY Protocol, Draft 3.1, sections 2.2 and 2.6)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cri.streaming.spdy.headers import HeaderBlock

VERSION: Final = 3
MAX_STREAM_ID: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1
MAX_DATA: Final = 2**24 - 1
"""Bytes of one DATA frame."""


class Kind(enum.IntEnum):
    """Control frames, by the number that stands in them (2.6)."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(enum.IntEnum):
    """Why a stream was ended (2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    INVALID_CREDENTIALS = 10
    FRAME_TOO_LARGE = 11


class GoAwayStatus(enum.IntEnum):
    """Why a connection was ended (2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


INITIAL_WINDOW_SIZE: Final = 7
"""The one setting that concerns us (2.6.4)."""


@dataclass(frozen=True, slots=True)
class SynStream:
    """A new stream (2.6.1)."""

    stream_id: int
    headers: HeaderBlock = field(default_factory=HeaderBlock)
    associated_to: int = 0
    priority: int = 0
    """0 is the highest, 7 the lowest."""
    fin: bool = False
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    """A new stream is welcome (2.6.2)."""

    stream_id: int
    headers: HeaderBlock = field(default_factory=HeaderBlock)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class RstStream:
    """A stream has ended in both directions at once (2.6.3)."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Pairs of a setting's number and its value (2.6.4). What is to be remembered for later connections is not told."""

    values: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Ping:
    """To be sent back (2.6.5). Clients' numbers are odd, servers' even."""

    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """No more streams (2.6.6)."""

    last_stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers for a stream (2.6.7)."""

    stream_id: int
    headers: HeaderBlock = field(default_factory=HeaderBlock)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """Room for that many more bytes, on a stream or, as stream 0, on all of them (2.6.8)."""

    stream_id: int
    delta: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream (2.2.2).

    When decoded it may be a piece of a frame: frames can have 16 MiB, and their borders mean nothing. `fin` comes with
    the last piece.
    """

    stream_id: int
    data: bytes
    fin: bool = False


Frame: TypeAlias = SynStream | SynReply | RstStream | Settings | Ping | GoAway | Headers | WindowUpdate | Data
