"""Notices a peer that owes an answer and says nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 5.0
"""Seconds in which a living warden says something. Half of them it is left alone, then it is pinged."""


class Silence:
    """Listens to one peer. Looks twice in `PATIENCE` while something is owed, and costs nothing otherwise."""

    def __init__(
        self, owes: Callable[[], bool], ping: Callable[[], None], fallen: Callable[[], None]
    ) -> None:
        """`owes` tells whether an answer is due; `ping` asks for a word; `fallen` is called when none has come."""
        self.fallen = False
        """It was owed something and has said nothing; until it speaks again."""
        self._owes = owes
        self._ping = ping
        self._tell = fallen
        self._loop = asyncio.get_running_loop()
        self._since = 0.0
        """When it last said something, or was first owed an answer since."""
        self._pinged = False
        self._looking: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Something is owed from now on, if nothing was before."""
        if self._looking is None:
            self._since = self._loop.time()
            self._look_later()

    def heard(self) -> None:
        """It has said something."""
        self._since = self._loop.time()
        self._pinged = self.fallen = False

    def stop(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look_later(self) -> None:
        self._looking = self._loop.call_later(PATIENCE / 2, self._look)

    def _look(self) -> None:
        """What it has said meanwhile has been read: in a turn of the loop, reading comes before timers."""
        self._looking = None
        if not self._owes():
            return
        if self._loop.time() - self._since < PATIENCE / 2 * 0.99:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            self._ping()
        else:
            self._pinged = False
            self.fallen = True
            self._tell()
            return
        self._look_later()
