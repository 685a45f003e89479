"""The HTTP of a streaming connection: one request, and either an answer that ends it or a switch of protocols.

h11 reads and writes it, so neither side can smuggle a line into the other's headers. No message repeats what the client
has sent: the path holds a token.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import h11

from cri.streaming.wire import SocketWire

MAX_HEAD = 16 * 1024
"""Bytes of request line and headers."""

HEAD_TIME = 10.0
"""Seconds in which the whole head must have come."""

READ_SIZE = 4096

Headers = Sequence[tuple[str, str]]


class RefusedError(Exception):
    """The request will not be served; the client gets the status and the message as plain text."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        """`headers` go with the answer."""
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Head:
    """A request, without a body."""

    method: str
    path: str
    """Without the query."""
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""

    def all(self, name: str) -> list[str]:
        """The elements of a header that is a list: comma separated, and the header may be repeated (RFC 9110, 5.6.1)."""
        values = (value for key, value in self.headers if key == name)
        elements = (element.strip(" \t") for value in values for element in value.split(","))
        return [element for element in elements if element]

    def wants(self, protocol: str) -> bool:
        """Whether the client asks to switch to this protocol (RFC 9110, 7.8)."""
        return "upgrade" in _lower(self.all("connection")) and protocol.lower() in _lower(self.all("upgrade"))


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")


def _lower(values: Iterable[str]) -> list[str]:
    return [value.lower() for value in values]


def negotiate(wanted: Sequence[str], offered: Sequence[str], default: str = "") -> str:
    """The first protocol of the client's list that is offered; `default` for clients that name none. Raises RefusedError."""
    for protocol in wanted or (default,):
        if protocol in offered:
            return protocol
    named = [protocol for protocol in offered if protocol]
    raise RefusedError(
        403,
        f"none of the protocols that the client names is served here; it may ask for: {', '.join(named) or 'none'}",
        [("X-Accepted-Stream-Protocol-Versions", protocol) for protocol in named],
    )


class Exchange:
    """The request of a connection and the answer to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._is_head = False

    async def head(self) -> Head:
        """The request. Raises RefusedError, and ConnectionError if the client leaves instead of asking."""
        try:
            async with asyncio.timeout(HEAD_TIME):
                return await self._head()
        except TimeoutError:
            raise RefusedError(408, f"the request took longer than {HEAD_TIME:g} seconds") from None
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise RefusedError(431, f"the request's head is longer than {MAX_HEAD} bytes") from None
            # h11's own message quotes the line, and with it the token.
            raise RefusedError(400, "this is not an HTTP/1.1 request") from None

    async def _head(self) -> Head:
        event = await self._event()
        assert isinstance(event, h11.Request)
        self._is_head = event.method == b"HEAD"
        if event.http_version != b"1.1":
            raise RefusedError(400, "streaming needs HTTP/1.1")
        if not isinstance(await self._event(), h11.EndOfMessage):
            raise RefusedError(400, "a request for a stream has no body")
        return Head(
            method=event.method.decode("ascii"),
            path=event.target.decode("ascii").partition("?")[0],
            headers=tuple((key.decode("ascii"), value.decode("latin-1")) for key, value in event.headers),
        )

    async def _event(self) -> object:
        """What h11 makes of the next bytes. Raises ConnectionError, h11.RemoteProtocolError."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(READ_SIZE)
            if not data:
                raise ConnectionError("the client left before it had asked for anything")
            self._http.receive_data(data)
        return event

    async def refuse(self, refused: RefusedError) -> None:
        """Answer with an error, and end the connection."""
        body = f"{refused}\n".encode()
        headers = [
            *refused.headers,
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        answer = self._http.send(
            h11.Response(status_code=refused.status, headers=headers, reason=_reason(refused.status))
        )
        assert answer is not None
        if not self._is_head:
            answer += self._http.send(h11.Data(data=body)) or b""
        wire = SocketWire(self._reader, self._writer)
        with contextlib.suppress(ConnectionError):
            await wire.write(answer)
        await wire.close()

    async def switch(self, upgrade: str, headers: Headers, patience: float) -> SocketWire:
        """Switch to another protocol; what the client has sent of it already is the first that is read.

        A client that takes nothing for `patience` seconds then counts as gone.

        Raises ConnectionError.
        """
        all_headers = [("Upgrade", upgrade), ("Connection", "Upgrade"), *headers]
        early, _ = self._http.trailing_data
        answer = self._http.send(
            h11.InformationalResponse(status_code=101, headers=all_headers, reason=_reason(101))
        )
        assert answer is not None
        wire = SocketWire(self._reader, self._writer, early, patience)
        await wire.write(answer)
        return wire
