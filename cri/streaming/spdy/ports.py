"""Port-forward over SPDY: portforward.k8s.io (client-go: tools/portforward).

For each connection the client opens two streams, `streamType` error and data, with the port and a number that both
bear (`requestID`). The error stream stays empty, or tells why the connection failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from cri.streaming.session import ClientGoneError
from cri.streaming.spdy.connection import SpdyConnection, SpdyStream

log = structlog.get_logger(__name__)

PROTOCOLS = ("portforward.k8s.io",)

PAIR_PATIENCE = 30.0
"""Seconds in which the second stream of a connection must follow the first; the kubelet's."""

MOST_HALVES = 4096
"""Halves that are kept. Those whose stream lives are fewer, as a client may not open so many; the others are dropped."""


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
        await self._data.ignore()


@dataclass(frozen=True, slots=True)
class _Half:
    """The first stream of a connection, which waits for the second."""

    stream: SpdyStream
    kind: str
    port: int
    expiry: asyncio.TimerHandle


class SpdyForwardSession:
    """All connections of one client (see `session.ForwardSession`)."""

    def __init__(self, connection: SpdyConnection) -> None:
        self._connection = connection
        self._halves: dict[str, _Half] = {}
        self._refusals: set[asyncio.Task[None]] = set()

    async def connection(self) -> SpdyForwardedConnection | None:
        """The next pair of streams."""
        while (stream := await self._connection.accept()) is not None:
            with contextlib.suppress(ClientGoneError):
                if (connection := await self._pair(stream)) is not None:
                    return connection
        return None

    async def close(self) -> None:
        """End the session with all its connections."""
        for half in self._halves.values():
            half.expiry.cancel()
        self._halves.clear()
        for refusal in self._refusals:
            refusal.cancel()
        await asyncio.gather(*self._refusals, return_exceptions=True)
        await self._connection.close()

    async def _pair(self, stream: SpdyStream) -> SpdyForwardedConnection | None:
        """The connection whose second stream this is. Raises ClientGoneError if the client has reset it."""
        kind, port = stream.headers.get("streamtype", ""), _port(stream.headers)
        if kind not in ("error", "data") or port is None:
            await stream.refuse()
            return None
        number = _request(stream, kind)
        half = self._halves.get(number)
        if half is None or half.stream.finished:
            self._forget(number)
            self._forget_the_dead()
            # Before anything is waited for: every half that there is has an end.
            expiry = asyncio.get_running_loop().call_later(PAIR_PATIENCE, self._expire, number)
            self._halves[number] = _Half(stream, kind, port, expiry)
            await stream.reply()
            return None
        if kind == half.kind or port != half.port:
            await stream.refuse()
            return None
        self._forget(number)
        try:
            await stream.reply()
        except ClientGoneError:
            await half.stream.refuse()
            raise
        data, error = (stream, half.stream) if kind == "data" else (half.stream, stream)
        return SpdyForwardedConnection(port, data, error)

    def _forget(self, number: str) -> None:
        if (half := self._halves.pop(number, None)) is not None:
            half.expiry.cancel()

    def _forget_the_dead(self) -> None:
        """Make sure that a client which opens and resets streams makes nothing grow."""
        if len(self._halves) >= MOST_HALVES:
            for number in [number for number, half in self._halves.items() if half.stream.finished]:
                self._forget(number)

    def _expire(self, number: str) -> None:
        half = self._halves.pop(number)
        log.info("half a connection of a port-forward expired", request=number)
        refusal = asyncio.create_task(half.stream.refuse())
        self._refusals.add(refusal)
        refusal.add_done_callback(self._refusals.discard)


def _port(headers: Mapping[str, str]) -> int | None:
    text = headers.get("port", "")
    return int(text) if text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535 else None


def _request(stream: SpdyStream, kind: str) -> str:
    """What both streams of a connection have in common: clients before 1.2 gave no number, but opened error, then data."""
    return stream.headers.get("requestid") or f"stream {stream.id if kind == 'error' else stream.id - 2}"
