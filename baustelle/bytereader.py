"""Exact reads from a stream that comes in chunks."""

from collections.abc import Callable, Iterator

from baustelle.errors import CorruptLayerError


class ByteReader:
    """Exact reads from an iterator of chunks, with nothing copied that is only passed on."""

    def __init__(self, chunks: Iterator[bytes], what: str) -> None:
        """`what` the bytes make is told when they end too early."""
        self._chunks = chunks
        self._what = what
        self._view = memoryview(b"")
        self._received = 0

    def at_end(self) -> bool:
        """Whether no byte is left."""
        while not self._view:
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._view = memoryview(chunk)
            self._received += len(chunk)
        return False

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises CorruptLayerError if the stream ends before."""
        if size <= len(self._view):
            data = self._view[:size].tobytes()
            self._view = self._view[size:]
            return data
        parts: list[bytes] = []
        self.copy(size, lambda view: parts.append(view.tobytes()))
        return b"".join(parts)

    def copy(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Pass the next `size` bytes to `write` in pieces."""
        while size:
            if self.at_end():
                raise CorruptLayerError(f"layer: truncated {self._what}: {size} bytes are missing at its end")
            piece = self._view[:size]
            write(piece)
            self._view = self._view[len(piece) :]
            size -= len(piece)

    def skip(self, size: int) -> None:
        """Drop the next `size` bytes."""
        self.copy(size, len)

    @property
    def position(self) -> int:
        """How many bytes were passed on or dropped until now."""
        return self._received - len(self._view)

    def drain(self) -> None:
        """Read to the end."""
        self._view = memoryview(b"")
        for _ in self._chunks:
            pass
