"""What Status says of the node, and whether the daemon is alive at all: for probes, which must always get an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import structlog

from cri.sandbox.host import Condition

log = structlog.get_logger(__name__)

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that whoever asks waits at most."""


class Conditions:
    """Looks at the node's conditions and at the database; one look of each at a time, however many ask."""

    def __init__(
        self,
        conditions: Mapping[str, Callable[[], Awaitable[Condition]]],
        database: Callable[[], Awaitable[None]],
    ) -> None:
        """`conditions` are by the type that Status gives them; `database` returns once it has dealt with what came before."""
        self._conditions = dict(conditions)
        self._database = database
        self._looks: dict[str, asyncio.Future[Any]] = {}

    async def now(self) -> dict[str, Condition]:
        """Every condition. One that cannot be told within PATIENCE is not met, and says so."""
        found = await asyncio.gather(*(self._told(kind, look) for kind, look in self._conditions.items()))
        return dict(zip(self._conditions, found, strict=True))

    async def dead(self) -> str:
        """Why a restart might help: "" if loop and database answer. A disk that refuses is an answer, and needs no restart."""
        try:
            await self._shared("database", self._database)
        except TimeoutError:
            return f"the state database does not answer within {PATIENCE:g} s"
        return ""

    async def _told(self, kind: str, look: Callable[[], Awaitable[Condition]]) -> Condition:
        try:
            return await self._shared(kind, look)
        except TimeoutError:
            return Condition(ok=False, reason="Silent", message=f"no answer within {PATIENCE:g} s")
        except Exception as error:
            log.exception("the node was not looked at", condition=kind)
            return Condition(ok=False, reason="LookFailed", message=f"{error}; see the daemon's log")

    async def _shared(self, name: str, look: Callable[[], Awaitable[T]]) -> T:
        running = self._looks.get(name)
        if running is None or running.done():
            running = self._looks[name] = asyncio.ensure_future(_as_coroutine(look))
        done, _ = await asyncio.wait([running], timeout=PATIENCE)
        if not done:
            raise TimeoutError
        result: T = running.result()
        return result


async def _as_coroutine(look: Callable[[], Awaitable[T]]) -> T:
    return await look()
