"""From a connection that was upgraded to the session that it carries: one class per kind of session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from cri.errors import CRIError
from cri.sandbox.host import HostError
from cri.streaming.session import ClientGoneError, CommandSession, ForwardSession, Outcome, Streams
from cri.streaming.spdy import commands as spdy_commands
from cri.streaming.spdy import ports as spdy_ports
from cri.streaming.spdy.connection import SpdyConnection
from cri.streaming.spdy.opening import OpeningSession
from cri.streaming.websocket import channels as websocket_channels
from cri.streaming.websocket import ports as websocket_ports
from cri.streaming.websocket.connection import WebSocketConnection
from cri.streaming.websocket.tunnel import TUNNEL_PROTOCOL, Tunnel
from cri.streaming.wire import Wire

log = structlog.get_logger(__name__)

LAST_WORDS = 2.0
"""Seconds for telling a client that its session is over, when the daemon stops or has failed."""


@dataclass(frozen=True, slots=True)
class CommandCarrier:
    """Carries an exec or an attach (`server.Session`)."""

    kind: str
    container_id: str
    streams: Streams
    serve: Callable[[CommandSession], Awaitable[Outcome]]
    """Raises ClientGoneError, CRIError, HostError, OSError; the client is told."""
    early: bool = False
    """Serve while the client is still opening its streams."""
    spdy_protocols: Sequence[str] = spdy_commands.PROTOCOLS
    websocket_protocols: Sequence[str] = websocket_channels.PROTOCOLS

    async def over_spdy(self, wire: Wire, protocol: str) -> None:
        """Serve once the client has opened its streams, or while it does."""
        async with spdy(wire) as connection:
            opening = spdy_commands.SpdyCommandSession.open(connection, protocol, self.streams)
            session = OpeningSession(opening) if self.early else await opening
            try:
                await self._serve(session)
            finally:
                await session.close()

    async def over_websocket(self, websocket: WebSocketConnection, protocol: str) -> None:
        """Serve at once: a WebSocket's channels are there from the beginning."""
        session = await websocket_channels.ChannelSession.open(websocket, protocol, self.streams)
        try:
            await self._serve(session)
        finally:
            session.abort()

    async def _serve(self, session: CommandSession) -> None:
        """Serve, and never leave a client without an outcome: it would take that for success."""
        try:
            await session.finish(await self._outcome(session))
        except BaseException as error:
            why = (
                "cri-jails is stopping"
                if isinstance(error, asyncio.CancelledError)
                else f"internal error ({type(error).__name__}); the log of cri-jails has the details"
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await session.finish(Outcome(error=why))
            raise

    async def _outcome(self, session: CommandSession) -> Outcome:
        try:
            return await self.serve(session)
        except ClientGoneError:
            log.info("client has gone", session=self.kind, container=self.container_id)
            return Outcome(error="the client has gone")
        except (CRIError, HostError, OSError) as error:
            return Outcome(error=str(error))


@dataclass(frozen=True, slots=True)
class ForwardCarrier:
    """Carries a port-forward (`server.Session`)."""

    ports: Sequence[int]
    """What was asked for beforehand; clients with channels need it."""
    serve: Callable[[ForwardSession], Awaitable[None]]
    kind: str = "portforward"
    spdy_protocols: Sequence[str] = spdy_ports.PROTOCOLS

    @property
    def websocket_protocols(self) -> Sequence[str]:
        """Channels belong to ports in their order, so they are for requests that name some; a channel's number is a byte."""
        return (TUNNEL_PROTOCOL, *(websocket_ports.PROTOCOLS if 0 < len(self.ports) < 128 else ()))

    async def over_spdy(self, wire: Wire, protocol: str) -> None:
        """Serve the client's connections."""
        del protocol  # there is only one
        async with spdy(wire) as connection:
            await self.serve(spdy_ports.SpdyForwardSession(connection))

    async def over_websocket(self, websocket: WebSocketConnection, protocol: str) -> None:
        """Serve the client's connections: SPDY inside of messages, or channels."""
        if protocol == TUNNEL_PROTOCOL:
            await self.over_spdy(Tunnel(websocket), protocol)
            return
        session = await websocket_ports.PortsSession.open(websocket, protocol, self.ports)
        try:
            await self.serve(session)
        finally:
            session.abort()


@contextlib.asynccontextmanager
async def spdy(wire: Wire) -> AsyncIterator[SpdyConnection]:
    """A SPDY connection that reads its client as long as this lasts."""
    connection = SpdyConnection(wire)
    reading = asyncio.create_task(connection.run())
    try:
        yield connection
    finally:
        connection.abort()
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, ClientGoneError):
            await reading
