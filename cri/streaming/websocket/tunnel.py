"""SPDY inside of a WebSocket: what kubectl's port-forward has done since 1.31, so that proxies see a WebSocket."""

from __future__ import annotations

from websockets.frames import CloseCode

from cri.streaming.session import ClientGoneError
from cri.streaming.websocket.connection import WebSocketConnection

PREFIX = "SPDY/3.1+"
"""Before the name of the protocol that the SPDY connection carries (k8s.io/apimachinery, pkg/util/portforward)."""

TUNNEL_PROTOCOL = f"{PREFIX}portforward.k8s.io"


class Tunnel:
    """A Wire (`cri.streaming.wire`) of binary messages; where one ends means nothing."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket

    async def read(self) -> bytes:
        """Some bytes from the client; empty when it has gone."""
        try:
            while True:
                fragment = await self._websocket.receive()
                if fragment.text:
                    raise await self._websocket.fail(
                        CloseCode.UNSUPPORTED_DATA, "SPDY is tunnelled in binary messages only"
                    )
                if fragment.data:
                    return fragment.data
        except ClientGoneError:
            return b""

    async def write(self, *parts: bytes) -> None:
        """Send the parts as one message. Raises ConnectionError."""
        try:
            await self._websocket.send(*parts)
        except ClientGoneError as error:
            raise ConnectionError(str(error)) from error

    async def close(self) -> None:
        """Send what is waiting, then close. Nobody may be in `read`."""
        await self._websocket.close()

    def abort(self) -> None:
        """Close at once."""
        self._websocket.abort()
