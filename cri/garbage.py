"""Python's garbage collector, kept from walking over everything that the node has.

A full collection looks at every object, and nothing else runs meanwhile: a tenth of a second with a thousand containers.
Nearly all of these objects go as soon as nobody refers to them; the collector is for those that refer to each other. So
what has survived a full collection is not looked at again, but for once a day.
"""

from __future__ import annotations

import gc
import time

EVERYTHING = 24 * 3600.0
"""Seconds between two collections that look at everything."""

_OLDEST = 2
"""The generation of a full collection."""


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
