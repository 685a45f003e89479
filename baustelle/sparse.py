"""The maps of sparse files in tar archives (GNU tar manual, "Storing Sparse Files"): which bytes of a file are stored."""

from array import array
from collections.abc import Callable, Iterable, Iterator

from baustelle.errors import CorruptLayerError
from baustelle.pax import MAX_META, decimal

BLOCK = 512


class Extents:
    """(offset, length) of the data of a file, in order; what lies between are holes. A map may have a hundred thousand."""

    def __init__(self) -> None:
        self._numbers = array("q")

    def add(self, offset: int, length: int) -> None:
        """Append one. Raises OverflowError for numbers of more than 63 bits."""
        self._numbers.append(offset)
        self._numbers.append(length)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, strict=True)

    def stored(self) -> int:
        """Bytes of data."""
        return sum(length for _, length in self)


def pairs_in_header(table: bytes, number: Callable[[bytes, str], int]) -> Iterator[int]:
    """Offsets and lengths of a table in GNU's own header, in turn, up to the first that is not used."""
    for start in range(0, len(table), 24):
        if table[start] == 0:
            return
        yield number(table[start : start + 12], "sparse offset")
        yield number(table[start + 12 : start + 24], "sparse length")


def numbers_in_text(text: bytes) -> Iterator[int]:
    """Offsets and lengths of a map in a pax record, in turn. Raises CorruptLayerError."""
    if text:
        start = 0
        while start <= len(text):  # a list of all of them would take forty times the bytes of the text
            end = text.find(b",", start)
            end = len(text) if end < 0 else end
            yield decimal(text[start:end], "sparse map")
            start = end + 1


class MapReader:
    """Reads format 1.0: before the data, decimal numbers in lines, the first being how many extents follow."""

    def __init__(self, stored: int, read: Callable[[int], bytes]) -> None:
        """The map ends before `stored` bytes; `read` gives the next so many of them."""
        self._limit = min(stored, MAX_META)
        self._read = read
        self.length = 0
        """Bytes that were read, whole blocks."""

    def numbers(self) -> Iterator[int]:
        """Offsets and lengths, in turn. Raises CorruptLayerError."""
        lines = self._lines()
        left = 2 * decimal(next(lines), "sparse map")
        while left:
            yield decimal(next(lines), "sparse map")
            left -= 1

    def _lines(self) -> Iterator[bytes]:
        begun = b""
        while True:
            if self.length + BLOCK > self._limit:
                raise CorruptLayerError("the sparse map does not end")
            *whole, begun = (begun + self._read(BLOCK)).split(b"\n")
            self.length += BLOCK
            yield from whole
            if len(begun) > BLOCK:
                raise CorruptLayerError("the sparse map has a line without an end")


def extents(numbers: Iterable[int], size: int) -> Extents:
    """The extents of a file of `size` bytes, of offsets and lengths in turn; those without a byte are left out.

    Raises CorruptLayerError, for the caller to say of which file.
    """
    found = Extents()
    position = 0
    rest = iter(numbers)
    for offset in rest:
        length = next(rest, None)
        if length is None:
            raise CorruptLayerError("the sparse map has an odd number of numbers")
        if offset < position or length < 0:
            raise CorruptLayerError("the sparse map is not in order")
        position = offset + length
        if position > size or position >= 1 << 63:
            raise CorruptLayerError("the sparse map is longer than the file")
        if length:
            found.add(offset, length)
    return found
