"""The opening handshake of a WebSocket (RFC 6455, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from websockets.datastructures import Headers as WebSocketHeaders
from websockets.http11 import Request
from websockets.server import ServerProtocol

from cri.streaming.head import Head, Headers, RefusedError, negotiate

NEGOTIATED = frozenset({"sec-websocket-protocol", "sec-websocket-extensions", "origin"})
BY_THE_SERVER = frozenset({"upgrade", "connection"})


def accept(head: Head, offered: Sequence[str]) -> tuple[Headers, str]:
    """The headers of the answer besides Upgrade and Connection, and the protocol that was chosen. Raises RefusedError.

    The Origin is not looked at. It tells whose page a browser has open, and guards servers that know their users by
    cookies; here a token says who may come, and no page can guess one.
    """
    protocol = negotiate(head.all("sec-websocket-protocol"), offered)
    # Protocols are chosen above, as Kubernetes has one with a slash in its name, which the library does not let pass.
    # Extensions are not: compression would hide the size of a message until it is unpacked.
    rest = WebSocketHeaders((key, value) for key, value in head.headers if key not in NEGOTIATED)
    answer = ServerProtocol().accept(Request(head.path, rest, method=head.method))
    if answer.status_code != 101:
        raise RefusedError(
            answer.status_code, "this is not the opening handshake of a WebSocket of version 13 (RFC 6455)"
        )
    headers = [(key, value) for key, value in answer.headers.raw_items() if key.lower() not in BY_THE_SERVER]
    return [*headers, ("Sec-WebSocket-Protocol", protocol)] if protocol else headers, protocol
