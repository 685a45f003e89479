"""How late the event loop is: what every call waits for before anything is done about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL = 1.0
"""Seconds between two looks. A loop that stands still for less is seen by some of the looks, in proportion."""


class LagSampler:
    """Sets a timer again and again, and tells how late it was."""

    def __init__(self, observe: Callable[[float], object], interval: float = INTERVAL) -> None:
        """`observe` is told the seconds."""
        self._observe = observe
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._handle = self._loop.call_at(self._loop.time() + self._interval, self._rang)

    def stop(self) -> None:
        """End. Succeeds if not started."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _rang(self) -> None:
        assert self._handle is not None
        self._observe(max(0.0, self._loop.time() - self._handle.when()))
        self.start()
