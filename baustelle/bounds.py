"""How much an image may become when it is unpacked, however few bytes it is pulled as."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from baustelle.errors import BoundExceededError

RATIO_FROM = 256 * 1024 * 1024
"""Plain bytes of a layer up to which nobody asks how few they were compressed to."""

WINDOWS = 32 * 1024 * 1024
"""Bytes that the windows of an image's zstd layers may take in memory at a time, if none takes more by itself."""

_PATIENCE = 0.05  # seconds between two looks at whether the work shall end


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one image may bring. No image that people work with comes near the defaults."""

    max_entries: int = 1_000_000
    """Files, directories, links and deletions in all layers; each is remembered until its layer is unpacked."""
    max_unpacked_bytes: int = 256 * 1024**3
    """Plain bytes of all layers, and of the files that they copy up from layers below."""
    max_expansion_ratio: int = 500
    """How many plain bytes a byte of a layer may stand for, on average, once these are more than `RATIO_FROM`."""
    max_zstd_window: int = 32 * 1024 * 1024
    """Bytes that a zstd layer may ask to look back on, which are held in memory. RFC 8878 recommends 8 MiB to encoders."""


class Budget:
    """What is left to one image, for all threads that unpack its layers."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._changed = threading.Condition()
        self._entries = 0
        self._bytes = 0
        self._windows = 0

    def take_entry(self) -> None:
        """A layer has one entry more. Raises BoundExceededError."""
        with self._changed:
            self._entries += 1
        if self._entries > self.bounds.max_entries:
            raise BoundExceededError("max_entries", f"more than {self.bounds.max_entries} entries")

    def take_bytes(self, size: int) -> None:
        """So many more bytes are unpacked, or copied up. Raises BoundExceededError."""
        with self._changed:
            self._bytes += size
        if self._bytes > self.bounds.max_unpacked_bytes:
            raise BoundExceededError(
                "max_unpacked_bytes", f"more than {self.bounds.max_unpacked_bytes} bytes unpacked"
            )

    def check_ratio(self, packed: int, plain: int) -> None:
        """So many bytes of a layer have become so many until now. Raises BoundExceededError."""
        if plain > RATIO_FROM and plain > packed * self.bounds.max_expansion_ratio:
            ratio = self.bounds.max_expansion_ratio
            raise BoundExceededError(
                "max_expansion_ratio", f"{packed} bytes become {plain} and more, over {ratio} times as many"
            )

    def take_window(self, size: int, check: Callable[[], None]) -> None:
        """Wait until there is room for a window, to be given back by who holds no other.

        `check` is called again and again, to raise what shall end the wait. Raises BoundExceededError.
        """
        most = self.bounds.max_zstd_window
        if size > most:
            raise BoundExceededError("max_zstd_window", f"a zstd window of {size} bytes, more than {most}")
        with self._changed:
            while self._windows and self._windows + size > max(WINDOWS, most):
                self._changed.wait(_PATIENCE)
                check()
            self._windows += size

    def give_window(self, size: int) -> None:
        """Give a window back."""
        with self._changed:
            self._windows -= size
            self._changed.notify_all()


class Window:
    """The memory of one decompressor: none at first. Use `release` at the end."""

    def __init__(self, budget: Budget, check: Callable[[], None] = lambda: None) -> None:
        self._budget = budget
        self._check = check
        self._size = 0

    def fits(self, size: int) -> bool:
        """Whether what is held is enough."""
        return size <= self._size

    def take(self, size: int) -> None:
        """Hold so many bytes instead of those before, which are in use no more. As `Budget.take_window`."""
        self.release()
        self._budget.take_window(size, self._check)
        self._size = size

    def release(self) -> None:
        """Hold nothing."""
        self._budget.give_window(self._size)
        self._size = 0
