"""Whether anything moves in a session: one that nobody needs any more is ended."""

from __future__ import annotations

import asyncio


class Activity:
    """When the last byte went either way."""

    def __init__(self, patience: float) -> None:
        """`patience` are the seconds without a byte after which a session counts as forgotten."""
        self.patience = patience
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    def mark(self) -> None:
        """A byte goes."""
        self._last = self._loop.time()

    async def ceased(self) -> None:
        """Return when none has gone for too long."""
        # No event wakes this: `mark` is called for every piece of data, and must cost nothing.
        while (left := self._last + self.patience - self._loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)
