"""Something has changed: look again."""

from __future__ import annotations

import asyncio


class Signal:
    """Wakes everybody who waits for it, and nobody who comes later."""

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def fire(self) -> None:
        """Wake all who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Return at the next `fire`. What it is about must be looked at again, before and after."""
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()
