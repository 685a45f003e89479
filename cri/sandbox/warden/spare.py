"""A warden in waiting: what every pod needs of one is done before anybody asks for a pod.

A page that a fork touches is copied, and Python touches whatever it looks at: more than a thousand of them until a warden's first
container runs, which is most of what that takes. So one warden goes ahead, gets ready and rehearses, and waits for its sandbox. It
holds nothing that would outlive it, and ends with the spawner.
"""

from __future__ import annotations

import socket

from cri.sandbox.warden import protocol
from cri.sandbox.warden.protocol import Message

_READY: Message = {"spare": "ready"}


class Spare:
    """One, as the spawner knows it. `channel` leads to it, and can be read when it is ready, or has ended."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.is_ready = False

    def hear(self) -> bool:
        """Read what it says. False if it has ended."""
        try:
            received = protocol.receive(self.channel)
        except (OSError, protocol.ProtocolError):
            return False
        if received is None:
            return False
        protocol.close_all(received[1])
        self.is_ready = True
        return True

    def give(self, message: Message, descriptors: list[int]) -> bool:
        """Pass on what was asked for, which the caller keeps. False if it cannot take that, and will not."""
        if not self.is_ready:
            return False
        try:
            protocol.send(self.channel, message, descriptors)
        except OSError:  # it has ended
            return False
        return True

    def close(self) -> None:
        """Let go of it: it goes on as a warden, or ends."""
        self.channel.close()


def wait(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """In the spare: say that it is ready, and wait for what it is to be; None if nobody wants it. Raises OSError, ProtocolError."""
    try:
        protocol.send(channel, _READY)
        return protocol.receive(channel)
    except ConnectionError:  # the spawner has ended
        return None
