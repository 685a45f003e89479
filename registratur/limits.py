"""How many transfers there are at a time, with one host and in all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class HostLimits:
    """At most `most` transfers with each host, and `in_all`; whoever has waited for `patience` seconds begins all the same.

    For a transfer may be held up by another one that waits here: the layer above, by the layer below. A host that is slow has
    no more than its own part of all, so it is in nobody's way.
    """

    def __init__(self, most: int, patience: float, in_all: int) -> None:
        self._most = most
        self._all = asyncio.Semaphore(in_all)
        self._patience = patience
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def slot(self, host: str) -> AsyncIterator[None]:
        """Be one of a host's transfers."""
        slots, users = self._hosts.get(host, (asyncio.Semaphore(self._most), 0))
        self._hosts[host] = slots, users + 1
        held: list[asyncio.Semaphore] = []
        try:
            try:
                async with asyncio.timeout(self._patience):
                    for semaphore in (slots, self._all):
                        await semaphore.acquire()
                        held.append(semaphore)
            except TimeoutError:
                pass
            yield
        finally:
            for semaphore in held:
                semaphore.release()
            users = self._hosts[host][1] - 1
            if users:
                self._hosts[host] = slots, users
            else:
                del self._hosts[host]
