"""The daemons at the other ends: connections, requests coming in, answers and events going out."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cri.sandbox.host import HostError
from cri.sandbox.warden import launch, protocol
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.loop import READ, WRITE, Loop

_STREAMS = ("stdin", "stdout", "stderr")
_MAX_OUTBOX = 10_000
"""Messages that wait for a daemon that does not read; then its connection is closed."""


@dataclass(eq=False)
class Connection:
    """A daemon."""

    channel: socket.socket
    outbox: deque[tuple[protocol.Message, list[int]]] = field(default_factory=deque)


Answer = Callable[..., None]
"""Answers a request: with a result and `descriptors`, or with an `error`.

Raises OSError, with nothing answered, if the descriptors cannot be copied.
"""

Handler = Callable[[Connection, protocol.Message, list[int]], None]


def given_streams(message: protocol.Message, descriptors: list[int]) -> dict[str, int]:
    """The descriptors of a request by the names of the streams that they are for. Raises HostError if it has others."""
    wanted = message["stdio"]
    if (
        not isinstance(wanted, list)
        or len(wanted) != len(_STREAMS)
        or sum(map(bool, wanted)) != len(descriptors)
    ):
        reason = f"it has {len(descriptors)} descriptors for stdio {wanted!r}"
        raise HostError("understand", f"request {message.get('op')!r}", reason)
    return dict(zip(itertools.compress(_STREAMS, wanted), descriptors, strict=True))


class Server:
    """Serves any number of connections; there is more than one while a daemon replaces another."""

    def __init__(
        self, loop: Loop, greeting: protocol.Message, handle: Handler, left: Callable[[Connection], None]
    ) -> None:
        """`handle` is called with each message, `left` when a connection ends.

        The message's descriptors are closed after that, but for those that `handle` takes out of their list.
        """
        self._loop = loop
        self._greeting = greeting
        self._handle = handle
        self._left = left
        self._connections: list[Connection] = []
        self._listener: socket.socket | None = None
        self.announced: list[int] = []
        """Descriptors that go with the greeting."""

    def listen(self, path: str) -> None:
        """Accept connections at a path; may be repeated, when somebody has removed the socket there. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.unlink(path)  # noqa: PTH108
        except FileNotFoundError:
            pass
        except OSError:  # a directory, with or without content
            os.rename(path, f"{path}.aside.{os.getpid()}")  # noqa: PTH104
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(8)
        listener.setblocking(False)
        if self._listener is not None:
            self._loop.unwatch(self._listener)
            self._listener.close()
        self._listener = listener
        self._loop.watch(listener, READ, lambda _: self._accept(listener))

    def connect(self, channel: socket.socket) -> None:
        """Serve a connection."""
        channel.setblocking(False)
        protocol.prepare(channel)
        connection = Connection(channel)
        self._connections.append(connection)
        self._loop.watch(channel, READ, lambda events: self._serve(connection, events))
        try:
            self.post(connection, self._greeting, self.announced)
        except OSError as error:
            warn(f"greet: {error}")
            self._disconnect(connection)

    def post(
        self, connection: Connection, message: protocol.Message, descriptors: list[int] | None = None
    ) -> None:
        """Send a message as soon as the daemon takes it; nothing happens if that is gone.

        The caller keeps its descriptors. Raises OSError, with nothing sent, if they cannot be copied.
        """
        if connection not in self._connections:
            return
        connection.outbox.append((message, protocol.duplicate(descriptors or ())))
        self._flush(connection)

    def broadcast(self, message: protocol.Message) -> None:
        """Send to all."""
        for connection in list(self._connections):
            self.post(connection, message)

    def is_idle(self) -> bool:
        """Whether everything has been sent."""
        return not any(connection.outbox for connection in self._connections)

    def _accept(self, listener: socket.socket) -> None:
        try:
            channel, _ = listener.accept()
        except OSError as error:
            warn(f"accept: {error}")
            return
        if protocol.peer(channel)[0] == os.geteuid():
            self.connect(channel)
        else:
            channel.close()

    def _disconnect(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._loop.unwatch(connection.channel)
        connection.channel.close()
        for _, descriptors in connection.outbox:
            protocol.close_all(descriptors)
        connection.outbox.clear()
        self._left(connection)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & WRITE:
            self._flush(connection)
        if not events & READ or connection not in self._connections:
            return
        try:
            received = protocol.receive(connection.channel)
        except BlockingIOError:
            return
        except OSError:
            received = None
        except protocol.DescriptorsLostError as error:
            failure = HostError(
                "take", "the request's descriptors", "the warden has too many files open", errno.EMFILE
            )
            self.post(connection, {"id": error.number, "error": launch.pack_error(failure)})
            return
        except protocol.ProtocolError as error:
            failure = HostError("understand", "message", str(error))
            self.post(connection, {"id": None, "error": launch.pack_error(failure)})
            return
        if received is None:
            self._disconnect(connection)
            return
        message, descriptors = received
        try:
            self._handle(connection, message, descriptors)
        finally:
            protocol.close_all(descriptors)

    def _flush(self, connection: Connection) -> None:
        while connection.outbox:
            message, descriptors = connection.outbox[0]
            try:
                protocol.send(connection.channel, message, descriptors)
            except BlockingIOError:
                break
            except OSError:
                self._disconnect(connection)
                return
            connection.outbox.popleft()
            protocol.close_all(descriptors)
        if len(connection.outbox) > _MAX_OUTBOX:
            self._disconnect(connection)
            return
        events = READ | WRITE if connection.outbox else READ
        self._loop.watch(connection.channel, events, lambda events: self._serve(connection, events))
