"""How many transfers there are with one host at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class HostLimits:
    """At most `most` transfers with each host; whoever has waited for `patience` seconds begins all the same.

    For a transfer may be held up by another one that waits here: the layer above, by the layer below.
    """

    def __init__(self, most: int, patience: float) -> None:
        self._most = most
        self._patience = patience
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def slot(self, host: str) -> AsyncIterator[None]:
        """Be one of a host's transfers."""
        slots, users = self._hosts.get(host, (asyncio.Semaphore(self._most), 0))
        self._hosts[host] = slots, users + 1
        is_counted = False
        try:
            try:
                async with asyncio.timeout(self._patience):
                    is_counted = await slots.acquire()
            except TimeoutError:
                pass
            yield
        finally:
            if is_counted:
                slots.release()
            users = self._hosts[host][1] - 1
            if users:
                self._hosts[host] = slots, users
            else:
                del self._hosts[host]
