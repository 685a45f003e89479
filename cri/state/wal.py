"""A database and its write-ahead log as bytes, for when SQLite cannot open them where they are.

The formats are SQLite's own, and public: https://www.sqlite.org/fileformat2.html (the database, 1.3; the log, 4) and
https://www.sqlite.org/walformat.html (the log's index in shared memory, 2.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""The log's magic number tells the byte order of its checksums."""
_WAL_HEADER = 32
_FRAME_HEADER = 24
_APPLICATION_ID = 68
_WAL_MODE = bytes((2, 2))
_ROLLBACK_MODE = bytes((1, 1))
_VERSIONS = slice(18, 20)
_INDEX_HEADER = struct.Struct("=16xI12x8s")
"""Of the index: the number of frames in the log, and the salt of the log that it is of."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A page in a log."""

    page: int
    """Its number, from 1."""
    size: int
    """Pages that the database has after the commit which this frame ends; 0 if it ends none."""
    data: memoryview


@dataclass(frozen=True, slots=True)
class Log:
    """A log whose header is whole."""

    content: memoryview
    order: str
    page_size: int
    salt: bytes
    checksum: tuple[int, int]

    @classmethod
    def read(cls, content: bytes) -> Self | None:
        """The log in a file's content; None if that is none."""
        if len(content) < _WAL_HEADER:
            return None
        magic, _, page_size = struct.unpack_from(">3I", content)
        order = _MAGIC.get(magic)
        if order is None or page_size not in (1 << shift for shift in range(9, 17)):
            return None
        checksum = _checksum(content[:24], (0, 0), order)
        if checksum != struct.unpack_from(">2I", content, 24):
            return None
        return cls(memoryview(content), order, page_size, content[16:24], checksum)

    def frames(self) -> Iterator[Frame]:
        """The frames up to the first that is not whole."""
        checksum = self.checksum
        for header, data in self._slots():
            checksum = _checksum(header[:8], checksum, self.order)
            checksum = _checksum(data, checksum, self.order)
            page, size, salt, first, second = struct.unpack(">2I8s2I", header)
            if salt != self.salt or (first, second) != checksum or not page:
                return
            yield Frame(page, size, data)

    def committed(self) -> int:
        """How many frames commits have written, by the looks of their headers; whole or not."""
        count = 0
        for number, (header, _) in enumerate(self._slots(), start=1):
            size, salt = struct.unpack_from(">4xI8s", header)
            if salt == self.salt and size:
                count = number
        return count

    def _slots(self) -> Iterator[tuple[memoryview, memoryview]]:
        length = _FRAME_HEADER + self.page_size
        for start in range(_WAL_HEADER, len(self.content) - length + 1, length):
            middle = start + _FRAME_HEADER
            yield self.content[start:middle], self.content[middle : start + length]


def expected_frames(log: bytes, index: bytes) -> int:
    """How many frames of commits a log must have, by itself or by what its index in shared memory remembers."""
    found = Log.read(log)
    if found is None:
        return 0
    frames = found.committed()
    if len(index) >= _INDEX_HEADER.size:
        count, salt = _INDEX_HEADER.unpack_from(index)
        if salt == found.salt:
            frames = max(frames, count)
    return frames


def merged(database: bytes, log: bytes) -> bytes:
    """One file that holds what a database and its log hold together, in a mode that needs no log.

    Whatever is wrong with them stays wrong with it.
    """
    image = bytearray(database)
    found = Log.read(log)
    if found is not None:
        pending: list[Frame] = []
        for frame in found.frames():
            pending.append(frame)
            if frame.size:  # before its commit a page does not count
                for one in pending:
                    end = one.page * found.page_size
                    if len(image) < end <= len(database) + len(log) + frame.size * found.page_size:
                        image.extend(bytes(end - len(image)))
                    image[end - found.page_size : end] = one.data
                del image[frame.size * found.page_size :]
                pending.clear()
    if image[_VERSIONS] == _WAL_MODE:
        image[_VERSIONS] = _ROLLBACK_MODE
    return bytes(image)


def application_id(database: bytes) -> int:
    """The application id in a database's header; 0 if it has none."""
    if len(database) < _APPLICATION_ID + 4:
        return 0
    (found,) = struct.unpack_from(">i", database, _APPLICATION_ID)
    return int(found)


def _checksum(data: bytes | memoryview, start: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = start
    words = struct.iter_unpack(f"{order}2I", data)
    for even, odd in words:
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
