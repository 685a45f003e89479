"""A layer's bytes, plain again: gzip, zstd or nothing, told apart by the first bytes."""

import zlib
from collections.abc import Iterator
from typing import Protocol

from baustelle.errors import CorruptLayerError

CHUNK = 512 * 1024
"""Bytes asked of the source at once, and the most that gzip hands out at once."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# A frame of the user's own data may come before or between zstd frames (RFC 8878, 3.1.2).
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + low, 0x2A, 0x4D, 0x18]) for low in range(16))

# What is left of a slice is copied for each member that ends in it, and 20 bytes are one.
_GZIP_SLICE = 32 * 1024

# Four bytes of zstd can stand for 128 KiB. Small slices bound what one step can allocate (128 MiB).
_ZSTD_SLICE = 4 * 1024


class Source(Protocol):
    """What is needed of a byte stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none only at the end."""


def plain_chunks(source: Source) -> Iterator[bytes]:
    """Yield the decompressed bytes of `source`, read to its end.

    Raises CorruptLayerError for damaged or truncated data.
    """
    head = b""
    while len(head) < 4 and (more := source.read(CHUNK)):
        head += more
    chunks = _chunks(head, source)
    if head.startswith(_GZIP_MAGIC):
        return _gunzip(chunks)
    if head.startswith((_ZSTD_MAGIC, *_ZSTD_SKIPPABLE)):
        return _unzstd(chunks)
    return chunks


def _chunks(head: bytes, source: Source) -> Iterator[bytes]:
    while head:
        yield head
        head = source.read(CHUNK)


def _slices(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    return (chunk[start : start + size] for chunk in chunks for start in range(0, len(chunk), size))


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All members of a gzip stream (RFC 1952), with zero padding after the last one allowed."""
    member = None
    for piece in _slices(chunks, _GZIP_SLICE):
        data = piece
        while data:
            if member is None:
                # estargz and pgzip write many members; tapes and block devices pad with zeros.
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                plain = member.decompress(data, CHUNK)
            except zlib.error as error:
                raise CorruptLayerError(f"layer: damaged gzip data: {error}") from error
            if plain:
                yield plain
            if member.eof:
                data, member = member.unused_data, None
            else:
                data = member.unconsumed_tail
    if member is None:
        return
    # The decompressor may hold back plain bytes when its input ran out exactly at the limit.
    while not member.eof:
        plain = member.decompress(b"", CHUNK)
        if not plain:
            raise CorruptLayerError("layer: truncated gzip data: the last member does not end")
        yield plain


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All frames of a zstd stream (RFC 8878)."""
    import zstandard  # noqa: PLC0415 - only images with zstd layers pay for loading it

    context = zstandard.ZstdDecompressor()
    frame = None
    ready: list[bytes] = []
    size = 0
    for piece in _slices(chunks, _ZSTD_SLICE):
        data = piece
        while data:
            if frame is None:
                frame = context.decompressobj()
            try:
                plain = frame.decompress(data)
            except zstandard.ZstdError as error:
                raise CorruptLayerError(f"layer: damaged zstd data: {error}") from error
            if plain:
                ready.append(plain)
                size += len(plain)
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
        if size >= CHUNK:  # many small pieces would become many small writes
            yield b"".join(ready)
            ready, size = [], 0
    if frame is not None:
        raise CorruptLayerError("layer: truncated zstd data: the last frame does not end")
    if size:
        yield b"".join(ready)
