"""Python's garbage collector, kept from walking over everything that the node has.

A full collection looks at every object, and nothing else runs meanwhile: a tenth of a second with a thousand containers.
Nearly all of these objects go as soon as nobody refers to them; the collector is for those that refer to each other. So
what has survived a full collection is not looked at again, but for once a day.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator

EVERYTHING = 24 * 3600.0
"""Seconds between two collections that look at everything."""

_OLDEST = 2
"""The generation of a full collection."""


_pauses = 0
_pausing = threading.Lock()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No collection while something is made of many objects, all of which are needed or go by themselves.

    Else there is one after the other, of ever more that cannot go, and nothing else runs meanwhile.
    """
    global _pauses  # noqa: PLW0603 - there is one collector
    with _pausing:
        _pauses += 1
        gc.disable()
    try:
        yield
    finally:
        with _pausing:
            _pauses -= 1
            if not _pauses:
                gc.enable()


class Sparing:
    """Spares what is there from collections; `begin` once the node is loaded."""

    def __init__(self, everything: float = EVERYTHING) -> None:
        self._everything = everything
        self._looked = 0.0

    def begin(self) -> None:
        """Spare what there is now, and from now on what survives."""
        self._looked = time.monotonic()
        gc.freeze()
        gc.callbacks.append(self._collected)

    def end(self) -> None:
        """Leave the collector as it was. Succeeds if `begin` was never called."""
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)
        gc.unfreeze()

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase != "stop" or info["generation"] != _OLDEST:
            return
        if time.monotonic() - self._looked < self._everything:
            gc.freeze()
        else:
            self._looked = time.monotonic()
            gc.unfreeze()  # the next one has it all
