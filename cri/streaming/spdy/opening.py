"""A session whose client is still opening its streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from cri.sandbox.spec import TerminalSize
from cri.streaming.session import ClientGoneError, Outcome, Output
from cri.streaming.spdy.commands import SpdyCommandSession


class OpeningSession:
    """A CommandSession (see `session`) that can be served before it is there.

    A client of SPDY opens one stream after the other and waits for an answer each time. A command takes as long to start,
    so it may do that meanwhile. Its output waits in its pipes, and is nobody's if the client never comes that far.
    """

    def __init__(self, opening: Coroutine[Any, Any, SpdyCommandSession]) -> None:
        """`opening` is `SpdyCommandSession.open`; it raises ClientGoneError if the client does not open its streams."""
        self._opening = asyncio.create_task(opening)

    async def stdin(self) -> bytes:
        """The next bytes of stdin. Raises ClientGoneError."""
        return await (await self._session()).stdin()

    async def resized(self) -> TerminalSize | None:
        """The next size of the client's terminal."""
        try:
            session = await self._session()
        except ClientGoneError:
            return None
        return await session.resized()

    async def send(self, output: Output, data: bytes) -> None:
        """Give the client output. Raises ClientGoneError."""
        await (await self._session()).send(output, data)

    async def finish(self, outcome: Outcome) -> None:
        """Tell how it ended, and close the session. Succeeds if the client has gone."""
        with contextlib.suppress(ClientGoneError):
            await (await self._session()).finish(outcome)

    async def gone(self) -> None:
        """Return when the client has gone, or does not open its streams."""
        with contextlib.suppress(ClientGoneError):
            await (await self._session()).gone()

    async def close(self) -> None:
        """Close the session, or wait for it no longer."""
        self._opening.cancel()
        with contextlib.suppress(ClientGoneError, asyncio.CancelledError):
            await (await self._opening).close()

    async def _session(self) -> SpdyCommandSession:
        return await asyncio.shield(self._opening)
