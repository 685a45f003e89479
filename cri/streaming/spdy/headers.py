"""Name/value header blocks (SPDY Protocol, Draft 3.1, section 2.6.10) and their compression (2.6.10.1).

All blocks of one direction of a connection are one zlib stream, flushed after each block. So every block has to go
through the decompressor, even one that nobody wants, and after a broken one nothing can be read any more.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cri.streaming.spdy.errors import SpdyError

_COUNT = struct.Struct(">I")

_WORDS = """
options head post put delete trace
accept accept-charset accept-encoding accept-language accept-ranges age allow authorization cache-control connection
content-base content-encoding content-language content-length content-location content-md5 content-range content-type
date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified
location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer
transfer-encoding upgrade user-agent vary via warning www-authenticate
method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin
"""
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _counted(text: str) -> bytes:
    data = text.encode("latin-1")
    return _COUNT.pack(len(data)) + data


DICTIONARY = b"".join(_counted(word.replace("_", " ")) for word in _WORDS.split()) + _TAIL.encode("ascii")
"""What both compressors have seen before the first byte: words as they stand in a block, then plain text."""


@dataclass(frozen=True, slots=True)
class HeaderBlock:
    """Names, in lower case, and values; several values of one name are separated by NUL.

    Bytes are taken for Latin-1: every one of them means something, and none of them can be lost.
    """

    pairs: Mapping[str, str] = field(default_factory=dict)

    malformed: bool = False
    """A name was empty or came twice. That is an error of the stream, not of the connection."""

    def first_values(self) -> dict[str, str]:
        """The first value of each name, which is the one that Go's `Header.Get` tells."""
        return {name: value.split("\0", 1)[0] for name, value in self.pairs.items()}


class HeaderCompressor:
    """Header blocks to bytes, for one direction of a connection."""

    def __init__(self) -> None:
        # 2 KiB of window hold the dictionary, and our blocks are nearly empty. zlib's usual 32 KiB would cost
        # 256 KiB of memory per connection.
        self._zlib = zlib.compressobj(wbits=11, memLevel=1, zdict=DICTIONARY)

    def compress(self, block: HeaderBlock) -> bytes:
        """The block as it goes into the next frame. What has been compressed must be sent, and in this order."""
        plain = _COUNT.pack(len(block.pairs)) + b"".join(
            _counted(text) for pair in block.pairs.items() for text in pair
        )
        return self._zlib.compress(plain) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderDecompressor:
    """Bytes to header blocks, for one direction of a connection."""

    def __init__(self, max_size: int, max_count: int) -> None:
        self._max_size = max_size
        self._max_count = max_count
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def decompress(self, data: bytes) -> HeaderBlock:
        """The block of one frame. Raises SpdyError."""
        try:
            plain = self._zlib.decompress(data, self._max_size + 1)
        except zlib.error as error:
            raise SpdyError("a header block cannot be decompressed") from error
        if len(plain) > self._max_size:
            raise SpdyError(f"a header block is larger than {self._max_size} bytes")
        if self._zlib.eof:
            raise SpdyError("the compression of header blocks has been ended")
        return self._parse(plain)

    def _parse(self, plain: bytes) -> HeaderBlock:
        try:
            (count,) = _COUNT.unpack_from(plain)
            if count > self._max_count:
                raise SpdyError(f"a header block has more than {self._max_count} names")
            offset = _COUNT.size
            texts = []
            for _ in range(2 * count):
                (length,) = _COUNT.unpack_from(plain, offset)
                offset += _COUNT.size
                texts.append(plain[offset : offset + length].decode("latin-1"))
                offset += length
        except struct.error as error:
            raise SpdyError("a header block is cut off") from error
        if offset != len(plain):
            raise SpdyError("a header block is not as long as it says")
        # Section 2.6.10 wants names in lower case. It costs nothing to forgive a client that has not heard of it.
        names = [_lower(name) for name in itertools.islice(texts, 0, None, 2)]
        pairs = dict(zip(names, itertools.islice(texts, 1, None, 2), strict=True))
        return HeaderBlock(pairs, malformed=len(pairs) < count or "" in pairs)


def _lower(name: str) -> str:
    """ASCII only: str.lower knows letters that become two, or leave Latin-1."""
    return name.encode("latin-1").lower().decode("latin-1")
