"""How Kubernetes puts several channels into one WebSocket: each message begins with the number of its channel.

The subprotocols with `base64` in their names send text, in which the number is a digit. See k8s.io/streaming,
pkg/httpstream/wsstream.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass

from websockets.frames import CloseCode

from cri.streaming.websocket.connection import WebSocketConnection
from cri.streaming.websocket.frames import Fragment, ProtocolBreachError

DIGIT = ord("0")

MESSAGE_SIZE = 64 * 1024
"""Bytes of data that a message of ours has at most while several channels send: they get their turn between them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what a message says to its channel."""

    channel: int
    data: bytes
    last: bool


class ChannelCodec:
    """Channels over a WebSocket, as a subprotocol has them."""

    def __init__(self, websocket: WebSocketConnection, protocol: str) -> None:
        self._websocket = websocket
        self._base64 = "base64." in protocol
        self._channel = 0
        self._undecoded = b""

    async def receive(self) -> Piece:
        """The next part of a message. Empty messages are skipped. Raises ClientGoneError."""
        while True:
            fragment = await self._websocket.receive()
            if fragment.first and not fragment.data:
                continue
            try:
                return self._piece(fragment)
            except ProtocolBreachError as breach:
                raise await self._websocket.fail(breach.code, str(breach)) from None

    def _piece(self, fragment: Fragment) -> Piece:
        data = fragment.data
        if fragment.first:
            self._channel = (data[0] - DIGIT) % 256 if self._base64 else data[0]
            data = data[1:]
            self._undecoded = b""
        if self._base64:
            data = self._decode(data, last=fragment.last)
        return Piece(self._channel, data, fragment.last)

    def _decode(self, data: bytes, *, last: bool) -> bytes:
        """Decode as many whole groups of four characters as there are. Raises ProtocolBreachError."""
        encoded = self._undecoded + data.translate(None, b"\r\n")
        whole = len(encoded) if last else len(encoded) // 4 * 4
        groups, self._undecoded = encoded[:whole], encoded[whole:]
        # Padding ends the text; keep it as a mark, so that whatever follows is an error.
        if groups.endswith(b"=") and not last:
            groups, self._undecoded = groups[:-4], groups[-4:] + self._undecoded
        try:
            return binascii.a2b_base64(groups, strict_mode=True)
        except binascii.Error as error:
            raise ProtocolBreachError(CloseCode.INVALID_DATA, "a message is not base64") from error

    async def send(self, channel: int, data: bytes) -> None:
        """Send data on a channel, as one message or several. Raises ClientGoneError."""
        size = MESSAGE_SIZE if self._websocket.busy else max(len(data), 1)
        for at in range(0, len(data) or 1, size):
            await self._send(channel, data[at : at + size])

    async def _send(self, channel: int, data: bytes) -> None:
        if self._base64:
            await self._websocket.send(
                bytes((DIGIT + channel,)), binascii.b2a_base64(data, newline=False), text=True
            )
        else:
            await self._websocket.send(bytes((channel,)), data)
