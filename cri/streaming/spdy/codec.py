"""Frames to bytes and back, without I/O (SPDY Protocol, Draft 3.1, sections 2.2 and 2.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cri.streaming.spdy.errors import SpdyError
from cri.streaming.spdy.frames import (
    MAX_STREAM_ID,
    MAX_WINDOW,
    VERSION,
    Data,
    Frame,
    GoAway,
    Headers,
    Kind,
    Ping,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)
from cri.streaming.spdy.headers import HeaderCompressor, HeaderDecompressor
from cri.streaming.spdy.limits import Limits

_FIN: Final = 0x01
_UNIDIRECTIONAL: Final = 0x02

_WORD = struct.Struct(">I")
_PAIR = struct.Struct(">II")
_OPENING = struct.Struct(">IIBx")


def data_head(stream_id: int, size: int, *, fin: bool = False) -> bytes:
    """What stands before `size` bytes of data (2.2.2)."""
    return _PAIR.pack(stream_id, (fin << 24) | size)


def _control(kind: Kind, payload: bytes, flags: int = 0) -> bytes:
    """A control frame (2.2.1)."""
    return _PAIR.pack(1 << 31 | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


class Encoder:
    """Frames to bytes, for one direction of a connection. What has been encoded must be sent, and in this order."""

    def __init__(self) -> None:
        self._compressor = HeaderCompressor()

    def encode(self, frame: Frame) -> bytes:
        """The frame as bytes."""
        match frame:
            case Data(stream_id, data, fin):
                return data_head(stream_id, len(data), fin=fin) + data
            case SynStream(stream_id, headers, associated_to, priority, fin, unidirectional):
                opening = _OPENING.pack(stream_id, associated_to, priority << 5)
                flags = fin * _FIN | unidirectional * _UNIDIRECTIONAL
                return _control(Kind.SYN_STREAM, opening + self._compressor.compress(headers), flags)
            case SynReply(stream_id, headers, fin):
                block = self._compressor.compress(headers)
                return _control(Kind.SYN_REPLY, _WORD.pack(stream_id) + block, fin * _FIN)
            case Headers(stream_id, headers, fin):
                block = self._compressor.compress(headers)
                return _control(Kind.HEADERS, _WORD.pack(stream_id) + block, fin * _FIN)
            case RstStream(stream_id, status):
                return _control(Kind.RST_STREAM, _PAIR.pack(stream_id, status))
            case Settings(values):
                return _control(
                    Kind.SETTINGS, _WORD.pack(len(values)) + b"".join(_PAIR.pack(*value) for value in values)
                )
            case Ping(number):
                return _control(Kind.PING, _WORD.pack(number))
            case GoAway(last_stream_id, status):
                return _control(Kind.GOAWAY, _PAIR.pack(last_stream_id, status))
            case WindowUpdate(stream_id, delta):
                return _control(Kind.WINDOW_UPDATE, _PAIR.pack(stream_id, delta))


def _stream(number: int) -> int:
    """A stream's number without the reserved bit."""
    if not number & MAX_STREAM_ID:
        raise SpdyError("a frame about stream 0")
    return number & MAX_STREAM_ID


def _syn_stream(payload: bytes, flags: int, zlib: HeaderDecompressor) -> SynStream:
    stream_id, associated_to, priority = _OPENING.unpack_from(payload)
    return SynStream(
        _stream(stream_id),
        zlib.decompress(payload[_OPENING.size :]),
        associated_to & MAX_STREAM_ID,
        priority >> 5,
        fin=bool(flags & _FIN),
        unidirectional=bool(flags & _UNIDIRECTIONAL),
    )


def _syn_reply(payload: bytes, flags: int, zlib: HeaderDecompressor) -> SynReply:
    return SynReply(
        _stream(*_WORD.unpack_from(payload)),
        zlib.decompress(payload[_WORD.size :]),
        fin=bool(flags & _FIN),
    )


def _headers(payload: bytes, flags: int, zlib: HeaderDecompressor) -> Headers:
    return Headers(
        _stream(*_WORD.unpack_from(payload)),
        zlib.decompress(payload[_WORD.size :]),
        fin=bool(flags & _FIN),
    )


def _rst_stream(payload: bytes, _flags: int, _zlib: HeaderDecompressor) -> RstStream:
    stream_id, status = _PAIR.unpack_from(payload)
    return RstStream(_stream(stream_id), status)


def _settings(payload: bytes, _flags: int, _zlib: HeaderDecompressor) -> Settings:
    (count,) = _WORD.unpack_from(payload)
    if len(payload) != _WORD.size + count * _PAIR.size:
        raise SpdyError(f"a SETTINGS frame of {len(payload)} bytes for {count} settings")
    pairs = _PAIR.iter_unpack(payload[_WORD.size :])
    return Settings(tuple((number & 0xFFFFFF, value) for number, value in pairs))


def _ping(payload: bytes, _flags: int, _zlib: HeaderDecompressor) -> Ping:
    return Ping(*_WORD.unpack_from(payload))


def _goaway(payload: bytes, _flags: int, _zlib: HeaderDecompressor) -> GoAway:
    last_stream_id, status = _PAIR.unpack_from(payload)
    return GoAway(last_stream_id & MAX_STREAM_ID, status)


def _window_update(payload: bytes, _flags: int, _zlib: HeaderDecompressor) -> WindowUpdate:
    stream_id, delta = _PAIR.unpack_from(payload)
    return WindowUpdate(stream_id & MAX_STREAM_ID, delta & MAX_WINDOW)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a control frame has after its head."""

    decode: Callable[[bytes, int, HeaderDecompressor], Frame]
    fixed: int
    """Bytes that are always there."""
    more: bool = False
    """Whether others may follow."""


_LAYOUTS: dict[int, _Layout] = {
    Kind.SYN_STREAM: _Layout(_syn_stream, 10, more=True),
    Kind.SYN_REPLY: _Layout(_syn_reply, 4, more=True),
    Kind.RST_STREAM: _Layout(_rst_stream, 8),
    Kind.SETTINGS: _Layout(_settings, 4, more=True),
    Kind.PING: _Layout(_ping, 4),
    Kind.GOAWAY: _Layout(_goaway, 8),
    Kind.HEADERS: _Layout(_headers, 4, more=True),
    Kind.WINDOW_UPDATE: _Layout(_window_update, 8),
}


class Decoder:
    """Bytes to frames, for one direction of a connection.

    Holds no more than one control frame. Data is passed on as it comes, and copied once at most.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_control = limits.control_frame
        self._decompressor = HeaderDecompressor(limits.header_block, limits.header_count)
        self._gathered = bytearray()
        """The begin of a frame's head, or of a control frame."""
        self._needed = _PAIR.size
        """Bytes to gather before they can be looked at."""
        self._stream_id = 0
        """Of the DATA frame whose bytes come next; 0 if they are to be skipped."""
        self._remaining = 0
        """Bytes of that frame which have not come yet."""
        self._fin = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that the bytes complete, and the data that they bring.

        Raises SpdyError; nothing can be decoded after it. The iterator must be exhausted before the next call, as
        it does the work.
        """
        offset = 0
        while offset < len(data):
            if self._remaining:
                piece = data[offset : offset + self._remaining]
                offset += len(piece)
                self._remaining -= len(piece)
                if self._stream_id:
                    yield Data(self._stream_id, piece, fin=self._fin and not self._remaining)
                continue
            piece = data[offset : offset + self._needed - len(self._gathered)]
            offset += len(piece)
            self._gathered += piece
            if len(self._gathered) == self._needed:
                frame = self._head() if self._needed == _PAIR.size else self._frame()
                if frame is not None:
                    yield frame

    def _head(self) -> Data | None:
        """Look at a frame's first eight bytes. An empty DATA frame is complete with them."""
        first, second = _PAIR.unpack(self._gathered)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first >> 31:
            if not first:
                raise SpdyError("data for stream 0")
            self._gathered.clear()
            self._stream_id, self._remaining, self._fin = first, length, bool(flags & _FIN)
            return None if length else Data(first, b"", fin=self._fin)
        if (version := first >> 16 & 0x7FFF) != VERSION:
            raise SpdyError(f"a control frame of version {version}")
        kind = first & 0xFFFF
        if (layout := _LAYOUTS.get(kind)) is None:
            self._gathered.clear()  # 2.2.1 wants unknown ones ignored; CREDENTIAL is one
            self._stream_id, self._remaining = 0, length
            return None
        if length != layout.fixed and not (layout.more and layout.fixed < length <= self._max_control):
            raise SpdyError(f"a {Kind(kind).name} frame of {length} bytes")
        self._needed = _PAIR.size + length
        return None

    def _frame(self) -> Frame:
        """A control frame that is complete."""
        first, second = _PAIR.unpack_from(self._gathered)
        payload = bytes(self._gathered[_PAIR.size :])
        self._gathered.clear()
        self._needed = _PAIR.size
        return _LAYOUTS[first & 0xFFFF].decode(payload, second >> 24, self._decompressor)
