"""The seam between what carries a session (SPDY, WebSocket) and what it is about (a process, a pod's ports).

A carrier offers one of the two protocols here; `execs`, `attachments` and `forwarding` use them and know of no frame.
Whoever reads slowly is waited for: every `send` and `write` returns when the client has room again, and what nobody
reads here stops the carrier from reading more of its client.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from cri.sandbox.spec import TerminalSize


class ClientGoneError(Exception):
    """The client has closed the connection, lost it, or broken the protocol so that it was closed."""


class Output(enum.Enum):
    """Where a process writes."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Streams:
    """What the request for a session has asked for; its client must open these, no others."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    """Then there is a stream of terminal sizes too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, as the client is told."""

    exit_code: int = 0
    error: str = ""
    """Why there is no exit code: it did not start, or its end could not be observed."""


class CommandSession(Protocol):
    """An exec or attach whose client is connected and has opened its streams."""

    async def stdin(self) -> bytes:
        """The next bytes of stdin; empty at its end, and at once if the client was to have none. Raises ClientGoneError."""

    async def resized(self) -> TerminalSize | None:
        """The next size of the client's terminal; None when no more can come."""

    async def send(self, output: Output, data: bytes) -> None:
        """Give the client output, and wait while it has no room. Dropped if the client did not ask for this output.

        Raises ClientGoneError.
        """

    async def finish(self, outcome: Outcome) -> None:
        """End the outputs, tell how it ended, and close the session. Nothing that was sent before is lost.

        Succeeds if the client has gone.
        """

    async def gone(self) -> None:
        """Return when the client has gone; never if it stays until `finish`."""


class ForwardedConnection(Protocol):
    """One connection to a port of a pod."""

    port: int

    async def read(self) -> bytes:
        """The next bytes from the client; empty at their end. Raises ClientGoneError."""

    async def write(self, data: bytes) -> None:
        """Give the client bytes, and wait while it has no room. Raises ClientGoneError."""

    async def finish(self) -> None:
        """No more bytes come from the pod. Those from the client may go on."""

    async def fail(self, message: str) -> None:
        """Tell the client why this connection failed, and end it."""

    async def close(self) -> None:
        """Let go of the connection; both directions have ended, or nobody cares any more. Succeeds if repeated."""


class ForwardSession(Protocol):
    """A port-forward whose client is connected."""

    async def connection(self) -> ForwardedConnection | None:
        """The next connection that the client makes; None when it has gone."""

    async def close(self) -> None:
        """End the session with all its connections."""
