"""Port-forward over SPDY: portforward.k8s.io (client-go: tools/portforward).

For each connection the client opens two streams, `streamType` error and data, with the port and a number that both
bear (`requestID`). The error stream stays empty, or tells why the connection failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import structlog

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy.connection import SpdyConnection, SpdyStream

log = structlog.get_logger(__name__)

PROTOCOLS = ("portforward.k8s.io",)

PAIR_PATIENCE = 30.0
"""Seconds in which the second stream of a connection must follow the first; the kubelet's."""


class SpdyForwardedConnection:
    """One connection (see `session.ForwardedConnection`)."""

    def __init__(self, port: int, data: SpdyStream, error: SpdyStream) -> None:
        self.port = port
        self._data = data
        self._error = error

    async def read(self) -> bytes:
        """The next bytes from the client. Raises ClientGoneError."""
        return await self._data.read()

    async def write(self, data: bytes) -> None:
        """Give the client bytes. Raises ClientGoneError."""
        await self._data.write(data)

    async def finish(self) -> None:
        """No more bytes come from the pod. Raises ClientGoneError."""
        await self._data.end()

    async def fail(self, message: str) -> None:
        """Tell the client why the connection failed."""
        with contextlib.suppress(ClientGoneError):
            await self._error.write(message.encode())
        await self.close()

    async def close(self) -> None:
        """End both streams. What the client still sends is not wanted any more."""
        for stream in (self._error, self._data):
            with contextlib.suppress(ClientGoneError):
                await stream.end()
        with contextlib.suppress(ClientGoneError):
            await self._data.ignore()


class SpdyForwardSession:
    """All connections of one client (see `session.ForwardSession`)."""

    def __init__(self, connection: SpdyConnection) -> None:
        self._connection = connection
        self._halves: dict[str, dict[str, SpdyStream]] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._refusals: set[asyncio.Task[None]] = set()

    async def connection(self) -> SpdyForwardedConnection | None:
        """The next pair of streams."""
        while (stream := await self._connection.accept()) is not None:
            with contextlib.suppress(ClientGoneError):
                if (pair := await self._pair(stream)) is not None:
                    return SpdyForwardedConnection(_port(stream.headers) or 0, pair["data"], pair["error"])
        return None

    async def close(self) -> None:
        """End the session with all its connections."""
        for expiry in self._expiries.values():
            expiry.cancel()
        for refusal in self._refusals:
            refusal.cancel()
        await asyncio.gather(*self._refusals, return_exceptions=True)
        await self._connection.close()

    async def _pair(self, stream: SpdyStream) -> dict[str, SpdyStream] | None:
        kind, port = stream.headers.get("streamtype", ""), _port(stream.headers)
        if kind not in ("error", "data") or port is None:
            await stream.refuse()
            return None
        number = _request(stream, kind)
        half = self._halves.setdefault(number, {})
        if kind in half or (half and _port(next(iter(half.values())).headers) != port):
            await stream.refuse()
            return None
        half[kind] = stream
        await stream.reply()
        if len(half) < 2:
            loop = asyncio.get_running_loop()
            self._expiries[number] = loop.call_later(PAIR_PATIENCE, self._expire, number)
            return None
        self._expiries.pop(number).cancel()
        return self._halves.pop(number)

    def _expire(self, number: str) -> None:
        del self._expiries[number]
        half = self._halves.pop(number)
        log.info("half a connection of a port-forward expired", request=number)
        for stream in half.values():
            refusal = asyncio.create_task(_reset(stream))
            self._refusals.add(refusal)
            refusal.add_done_callback(self._refusals.discard)


def _port(headers: Mapping[str, str]) -> int | None:
    text = headers.get("port", "")
    return int(text) if text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535 else None


def _request(stream: SpdyStream, kind: str) -> str:
    """What both streams of a connection have in common: clients before 1.2 gave no number, but opened error, then data."""
    return stream.headers.get("requestid") or f"stream {stream.id if kind == 'error' else stream.id - 2}"


async def _reset(stream: SpdyStream) -> None:
    with contextlib.suppress(ClientGoneError):
        await stream.refuse()
