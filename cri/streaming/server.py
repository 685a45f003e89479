"""The streaming server: URLs with single-use tokens, and behind each of them a session over SPDY or a WebSocket.

It knows who may come, how many, and how a connection becomes a carrier. What a session does is its own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from cri.streaming.grants import Grants
from cri.streaming.head import Exchange, Head, RefusedError, negotiate
from cri.streaming.session import ClientGoneError
from cri.streaming.tls import CertificateFiles
from cri.streaming.websocket.connection import WebSocketConnection
from cri.streaming.websocket.handshake import accept
from cri.streaming.wire import PATIENCE, Wire

log = structlog.get_logger(__name__)

SPDY = "SPDY/3.1"
CONNECTIONS = 1024
UNASKED = 64
"""Connections that have not brought a token yet. Anybody can make them, and with TLS each costs 300 KiB."""

ASKING_TIME = 0.5
"""Seconds that a connection has at least for bringing one, however many others want its place."""

TLS_TIME = 10.0
"""Seconds for a TLS handshake."""

CANCEL_TIME = 5.0
"""Seconds that a session may take to clean up after it was cancelled, and once more after its connection was closed."""

BUFFER = 128 * 1024
"""asyncio stops reading from a client at twice as many bytes that nobody has taken."""

KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A client whose machine is gone is found out in two minutes."""


class Session(Protocol):
    """What a token stands for: a request that was checked, and can be carried out once its client has come."""

    @property
    def kind(self) -> str:
        """The first element of the URL's path: `exec`, `attach` or `portforward`."""

    @property
    def spdy_protocols(self) -> Sequence[str]:
        """Values of X-Stream-Protocol-Version that are served; `` if clients that send none are, too."""

    @property
    def websocket_protocols(self) -> Sequence[str]:
        """Values of Sec-WebSocket-Protocol that are served; `` likewise."""

    async def over_spdy(self, wire: Wire, protocol: str) -> None:
        """Serve the client; the connection is over when this returns or raises. Cancelled when the server stops."""

    async def over_websocket(self, websocket: WebSocketConnection, protocol: str) -> None:
        """Serve the client, likewise."""


class StreamingServer:
    """Listens from `start` to `stop`; `offer` makes the URL of a session."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: CertificateFiles | None = None,
        patience: float = PATIENCE,
        connections: int = CONNECTIONS,
        unasked: int = UNASKED,
        grants: Grants[Session] | None = None,
    ) -> None:
        """Port 0 is a free one.

        Clients that take nothing of what there is for them for `patience` seconds have gone.
        """
        self._host = host or "0.0.0.0"
        self._port = port
        self._tls = tls
        self._patience = patience
        self._most = connections
        self._most_unasked = unasked
        self._grants = Grants[Session]() if grants is None else grants
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._transports: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self._unasked: dict[asyncio.Task[None], float] = {}
        """Connections without a token until now, the oldest first, and the time until which they keep their place."""
        self._place = asyncio.Event()
        """There are fewer of them."""
        self._complained = -1.0

    async def start(self) -> None:
        """Listen. Raises OSError if the address cannot be had, and CertificateError."""
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            await self._tls.context()
        found = await loop.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        # One address only: a name with several and port 0 would have as many ports, and a URL has one.
        self._listener = socket.create_server(address, family=family, backlog=256)
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept(self._listener), name="streaming server")

    async def stop(self, grace: float = 0.0) -> None:
        """Take no more connections; leave those that are there `grace` seconds to end, then cancel them.

        A client that neither reads nor closes could keep its session at the goodbye: its connection is closed at last.
        """
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._listener is not None:
            self._listener.close()
        if self._connections and grace > 0:
            await asyncio.wait(self._connections, timeout=grace)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=CANCEL_TIME)
        for transport in self._transports.values():
            transport.abort()
        if self._connections:
            _, stuck = await asyncio.wait(self._connections, timeout=CANCEL_TIME)
            if stuck:
                log.error("streaming sessions did not end when the server stopped", count=len(stuck))

    @property
    def port(self) -> int:
        """Where the server listens, after `start`."""
        return self._port

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def offer(self, session: Session) -> str:
        """A URL under which a client finds the session, once and within a minute. Raises ResourceExhaustedError."""
        scheme = "http" if self._tls is None else "https"
        token = self._grants.issue(session)
        return f"{scheme}://{_in_url(_reachable(self._host))}:{self._port}/{session.kind}/{token}"

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, or the client has gone: both pass
                self._complain("cannot accept a streaming connection", error=str(error))
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= self._most:
                connection.close()
                self._complain("too many streaming connections, more are closed", limit=self._most)
                continue
            try:
                await self._wait_for_place()
            except BaseException:
                connection.close()
                raise
            task = asyncio.create_task(self._serve(connection, peer[0]), name="streaming connection")
            self._connections.add(task)
            self._unasked[task] = loop.time() + ASKING_TIME
            task.add_done_callback(self._forget)

    async def _wait_for_place(self) -> None:
        """Wait for a place among those that have not asked yet. Who has had its time is closed for it."""
        loop = asyncio.get_running_loop()
        while len(self._unasked) >= self._most_unasked:
            oldest, end = next(iter(self._unasked.items()))
            if end <= loop.time():
                del self._unasked[oldest]
                oldest.cancel()
                self._complain(
                    "too many streaming connections that ask for nothing, the oldest is closed",
                    limit=self._most_unasked,
                )
            else:
                self._place.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(end):
                        await self._place.wait()

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._unasked.pop(task, None)
        self._place.set()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._transports.pop(task, None)
        self._asked(task)

    def _complain(self, event: str, **values: object) -> None:
        if time.monotonic() - self._complained >= 1:
            self._complained = time.monotonic()
            log.warning(event, **values)

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        """Serve a connection from its first byte to its last; whatever goes wrong ends here."""
        task = asyncio.current_task()
        assert task is not None
        try:
            reader, writer = await self._open(connection)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            connection.close()
            log.info("a streaming connection failed before its request", peer=peer, error=str(error))
            return
        except BaseException:
            connection.close()
            raise
        self._transports[task] = writer.transport
        try:
            await self._answer(Exchange(reader, writer), peer, task)
        except (ConnectionError, ClientGoneError) as error:
            log.debug("a streaming client has gone", peer=peer, error=str(error))
        except Exception:
            log.exception("a streaming session failed", peer=peer)
        finally:
            writer.transport.abort()

    async def _open(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        context: ssl.SSLContext | None = None if self._tls is None else await self._tls.context()
        _tune(connection)
        reader = asyncio.StreamReader(limit=BUFFER)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=context,
            ssl_handshake_timeout=None if context is None else TLS_TIME,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _answer(self, exchange: Exchange, peer: str, task: asyncio.Task[None]) -> None:
        try:
            head = await exchange.head()
            session = self._redeem(head)
            self._asked(task)
            if head.wants("websocket"):
                headers, protocol = accept(head, session.websocket_protocols)
            else:
                protocol = negotiate(head.all("x-stream-protocol-version"), session.spdy_protocols)
                headers = [("X-Stream-Protocol-Version", protocol)] if protocol else []
        except RefusedError as refused:
            log.info("a streaming request was refused", peer=peer, status=refused.status, reason=str(refused))
            await exchange.refuse(refused)
            return
        if head.wants("websocket"):
            websocket = WebSocketConnection(await exchange.switch("websocket", headers, self._patience))
            try:
                await session.over_websocket(websocket, protocol)
            finally:
                websocket.abort()
        else:
            await session.over_spdy(await exchange.switch(SPDY, headers, self._patience), protocol)

    def _redeem(self, head: Head) -> Session:
        """The session that the request is for. Raises RefusedError.

        What is no request for any stream leaves the token as it is. Whoever asks for a stream has used it up, even if
        it is for another kind, or for a protocol that is not served.
        """
        if head.method not in ("GET", "POST"):
            raise RefusedError(405, "a stream is asked for with GET or POST", [("Allow", "GET, POST")])
        if not (head.wants("websocket") or head.wants(SPDY)):
            raise RefusedError(
                400,
                f"this is a stream: the client has to ask for an upgrade of the connection to {SPDY} or websocket",
            )
        kind, _, token = head.path.removeprefix("/").partition("/")
        session = self._grants.redeem(token)
        if session is None or session.kind != kind:
            raise RefusedError(
                404,
                "there is no such stream; its URL is for one use, within a minute of the call that made it",
            )
        return session


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _reachable(host: str) -> str:
    """Where a client of this node (the kubelet is one) finds a server that listens on `host`, which may be a wildcard."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"


def _in_url(host: str) -> str:
    return f"[{host.replace('%', '%25')}]" if ":" in host and not host.startswith("[") else host
