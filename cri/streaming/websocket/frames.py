"""What a WebSocket's client sends, taken apart as it comes (RFC 6455, section 5).

The library's own parser waits for whole frames, and some clients send a file as a single one: then every connection
could hold many megabytes. This one passes data on as it arrives, and never keeps more than a header or a control frame.
The library unmasks, and knows the names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from websockets.frames import CloseCode, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the library was installed without a compiler
    from websockets.utils import apply_mask

MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes of a message, however many frames it has; what servers in Go accept, too."""

MAX_CONTROL = 125
"""Bytes of payload in a control frame (section 5.5)."""

FIN = 0x80
RESERVED = 0x70
MASKED = 0x80
OPCODES = frozenset(Opcode)


class ProtocolBreachError(Exception):
    """The client has sent what no client may send; nothing after it can be understood."""

    def __init__(self, code: CloseCode, message: str) -> None:
        """`code` is what the close frame is to say (section 7.4.1)."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a message, as much of it as has come together."""

    data: bytes
    first: bool
    last: bool
    text: bool


@dataclass(frozen=True, slots=True)
class Control:
    """A whole ping, pong or close."""

    opcode: Opcode
    data: bytes


@dataclass(slots=True)
class _Frame:
    opcode: Opcode
    fin: bool
    mask: bytes
    left: int
    """Bytes of payload that have not come yet."""


class FrameReader:
    """The client's half of a connection, from its first byte."""

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max = max_message
        self._kept = bytearray()
        """The beginning of a header, or of a control frame's payload."""
        self._frame: _Frame | None = None
        self._message: Opcode | None = None
        """TEXT or BINARY, while a message is under way."""
        self._size = 0
        self._started = False
        """A fragment of the message has been handed out."""

    def feed(self, data: bytes) -> Iterator[Fragment | Control]:
        """What is in the next bytes, which may end anywhere. To be read to its end, or left for good.

        Raises ProtocolBreachError, after what came before the breach.
        """
        at = 0
        while True:
            if self._frame is None:
                # A header has at most 14 bytes. Taking them one step at a time keeps payload out of `_kept`.
                need = _header_size(self._kept)
                if len(self._kept) < need:
                    taken = data[at : at + need - len(self._kept)]
                    if not taken:
                        return
                    self._kept += taken
                    at += len(taken)
                    continue
                self._frame = self._begin(self._kept)
                self._kept.clear()
            frame = self._frame
            taken = data[at : at + frame.left]
            at += len(taken)
            frame.left -= len(taken)
            if frame.left and not taken:
                return
            if frame.opcode < Opcode.CLOSE:
                yield from self._fragment(frame, taken)
            else:
                self._kept += taken
                if frame.left:
                    return
                payload = apply_mask(bytes(self._kept), frame.mask)
                self._kept.clear()
                yield Control(frame.opcode, payload)
            if not frame.left:
                self._frame = None

    def _begin(self, header: bytearray) -> _Frame:
        first, second = header[:2]
        opcode = Opcode(first & 0x0F)
        length = int.from_bytes(header[2:-4], "big") if second & 0x7F >= 126 else second & 0x7F
        fin = bool(first & FIN)
        if opcode >= Opcode.CLOSE:
            if length > MAX_CONTROL or not fin:
                raise _breach("a control frame is too long or fragmented")
        else:
            self._expect(opcode, length)
        return _Frame(opcode, fin, bytes(header[-4:]), length)

    def _expect(self, opcode: Opcode, length: int) -> None:
        """Look whether a data frame of this kind may come now."""
        if opcode is Opcode.CONT:
            if self._message is None:
                raise _breach("a continuation of no message")
        elif self._message is not None:
            raise _breach("a message begins inside of another")
        else:
            self._message, self._size, self._started = opcode, 0, False
        self._size += length
        if self._size > self._max:
            raise ProtocolBreachError(
                CloseCode.MESSAGE_TOO_BIG, f"a message is longer than {self._max} bytes"
            )

    def _fragment(self, frame: _Frame, masked: bytes) -> Iterator[Fragment]:
        last = frame.fin and not frame.left
        data = apply_mask(masked, frame.mask)
        # What comes next continues at another byte of the mask.
        turn = len(masked) % 4
        frame.mask = frame.mask[turn:] + frame.mask[:turn]
        first, text = not self._started, self._message is Opcode.TEXT
        if last:
            self._message = None
        elif not data:
            return  # an empty frame within a message says nothing
        self._started = True
        yield Fragment(data, first, last, text)


def _header_size(header: bytearray) -> int:
    """How long the header is, as far as one can tell from its beginning (section 5.2). Raises ProtocolBreachError."""
    if len(header) < 2:
        return 2
    if header[0] & RESERVED:
        raise _breach("a reserved bit is set, but no extension was agreed on")
    if not header[1] & MASKED:
        raise _breach("a frame of the client is not masked")
    if header[0] & 0x0F not in OPCODES:
        raise _breach("unknown opcode")
    length = header[1] & 0x7F
    return 6 + (8 if length == 127 else 2 if length == 126 else 0)


def _breach(message: str) -> ProtocolBreachError:
    return ProtocolBreachError(CloseCode.PROTOCOL_ERROR, message)


def frame_header(opcode: Opcode, size: int) -> bytes:
    """What stands before the payload of a whole message, or a control frame, from the server."""
    first = FIN | opcode
    if size < 126:
        return bytes((first, size))
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)
