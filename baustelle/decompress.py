"""A layer's bytes, plain again: gzip, zstd or nothing, told apart by the first bytes."""

import zlib
from collections.abc import Iterator
from typing import Protocol

from baustelle.bounds import Window
from baustelle.bytereader import ByteReader
from baustelle.errors import CorruptLayerError

CHUNK = 512 * 1024
"""Bytes asked of the source at once, and the most that gzip hands out at once."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# A frame of the user's own data may come before or between zstd frames (RFC 8878, 3.1.2).
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + low, 0x2A, 0x4D, 0x18]) for low in range(16))

# What is left of a slice is copied for each member that ends in it, and 20 bytes are one.
_GZIP_SLICE = 32 * 1024

_ZSTD_FIXED = 5  # bytes of a frame that tell how long its header is
_ZSTD_REPEATED = 1  # the type of a block that is one byte, again and again
_ZSTD_LEAST = 1024  # bytes of the smallest window


class Source(Protocol):
    """What is needed of a byte stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none only at the end."""


def plain_chunks(source: Source, window: Window) -> Iterator[bytes]:
    """Yield the decompressed bytes of `source`, read to its end, in chunks of bounded size.

    `window` is what zstd may hold in memory, the caller's to release.
    Raises CorruptLayerError for damaged or truncated data, BoundExceededError.
    """
    head = b""
    while len(head) < 4 and (more := source.read(CHUNK)):
        head += more
    chunks = _chunks(head, source)
    if head.startswith(_GZIP_MAGIC):
        return _gunzip(chunks)
    if head.startswith((_ZSTD_MAGIC, *_ZSTD_SKIPPABLE)):
        return _unzstd(chunks, window)
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


def _unzstd(chunks: Iterator[bytes], window: Window) -> Iterator[bytes]:
    """All frames of a zstd stream (RFC 8878), block by block: none has more than 128 KiB of plain bytes.

    Four bytes can stand for a block, so what a decompressor makes of more at once nobody could bound.
    """
    import zstandard  # noqa: PLC0415 - only images with zstd layers pay for loading it

    stream = ByteReader(chunks, "zstd data")
    context = None
    ready: list[bytes] = []
    size = 0
    while not stream.at_end():
        head = stream.read(_ZSTD_FIXED)
        if head.startswith(_ZSTD_SKIPPABLE):
            head += stream.read(8 - _ZSTD_FIXED)
            stream.skip(int.from_bytes(head[4:8], "little"))
            continue
        try:
            head += stream.read(zstandard.frame_header_size(head) - _ZSTD_FIXED)
            told = zstandard.get_frame_parameters(head)
            if context is None or not window.fits(told.window_size):
                context = None  # frees the window that it has
                window.take(told.window_size)
                context = zstandard.ZstdDecompressor(max_window_size=max(told.window_size, _ZSTD_LEAST))
            frame = context.decompressobj()
            frame.decompress(head)
            for block in _blocks(stream, has_checksum=told.has_checksum):
                plain = frame.decompress(block)
                ready.append(plain)
                size += len(plain)
                if size >= CHUNK:  # many small pieces would become many small writes
                    yield b"".join(ready)
                    ready, size = [], 0
        except zstandard.ZstdError as error:
            raise CorruptLayerError(f"layer: damaged zstd data: {error}") from error
        if not frame.eof:
            raise CorruptLayerError("layer: damaged zstd data: a frame does not end with its last block")
    if size:
        yield b"".join(ready)


def _blocks(stream: ByteReader, *, has_checksum: bool) -> Iterator[bytes]:
    """The blocks of a frame, each with its header, and the frame's checksum."""
    while True:
        head = stream.read(3)
        told = int.from_bytes(head, "little")
        last, kind, size = told & 1, told >> 1 & 3, told >> 3
        yield head + stream.read(1 if kind == _ZSTD_REPEATED else size)
        if last:
            break
    if has_checksum:
        yield stream.read(4)
