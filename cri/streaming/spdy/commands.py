"""Exec and attach over SPDY: the streams of channel.k8s.io, which is v1, to v4.channel.k8s.io (client-go: tools/remotecommand).

The client opens every stream and says by the header `streamType` what it is for: error, stdin, stdout, stderr, and
resize since v3. v4 ends with a metav1.Status as JSON on the error stream, the versions before with a message for
people, or nothing. v1 and v2 differ in the client only: that of v1 never ends stdin, and leaves when the outputs have
ended, so that the message may come too late for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Self

import structlog

from cri.sandbox.spec import TerminalSize
from cri.streaming.resizing import SizeStream
from cri.streaming.session import ClientGoneError, Outcome, Output, Streams
from cri.streaming.spdy.connection import SpdyConnection, SpdyStream
from cri.streaming.status import error_stream

log = structlog.get_logger(__name__)

PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", "")
"""What clients may ask for, the best first; "" is of those who negotiate nothing."""

_RESIZING = ("v4.channel.k8s.io", "v3.channel.k8s.io")

CREATION_PATIENCE = 30.0
"""Seconds in which a client must have opened its streams; the kubelet's."""


class SpdyCommandSession:
    """The streams of one command (see `session.CommandSession`)."""

    def __init__(
        self, connection: SpdyConnection, protocol: str, wanted: Streams, streams: dict[str, SpdyStream]
    ) -> None:
        self._connection = connection
        self._protocol = protocol
        self._wanted = wanted
        self._streams = streams
        self._sizes: deque[TerminalSize] = deque(maxlen=1)
        self._resized = asyncio.Event()
        self._no_more_sizes = "resize" not in streams
        self._tasks = [asyncio.create_task(self._refuse_more())]
        if not self._no_more_sizes:
            self._tasks.append(asyncio.create_task(self._read_sizes(streams["resize"])))

    @classmethod
    async def open(cls, connection: SpdyConnection, protocol: str, wanted: Streams) -> Self:
        """Wait until the client has opened all streams that this needs. Raises ClientGoneError."""
        expected = {"error"} | {name for name in ("stdin", "stdout", "stderr") if getattr(wanted, name)}
        if wanted.tty and protocol in _RESIZING:
            expected.add("resize")
        streams: dict[str, SpdyStream] = {}
        try:
            async with asyncio.timeout(CREATION_PATIENCE):
                while expected - streams.keys():
                    stream = await connection.accept()
                    if stream is None:
                        raise ClientGoneError
                    name = stream.headers.get("streamtype", "")
                    if name in expected and name not in streams:
                        streams[name] = stream
                        await stream.reply()
                    else:
                        await stream.refuse()
        except TimeoutError:
            missing = sorted(expected - streams.keys())
            log.info("a client has not opened its streams", missing=missing, seconds=CREATION_PATIENCE)
            raise ClientGoneError from None
        return cls(connection, protocol, wanted, streams)

    async def stdin(self) -> bytes:
        """The next bytes of stdin. Raises ClientGoneError."""
        return await self._streams["stdin"].read() if self._wanted.stdin else b""

    async def resized(self) -> TerminalSize | None:
        """The newest size that nobody has been told of yet."""
        while not self._sizes:
            if self._no_more_sizes:
                return None
            self._resized.clear()
            await self._resized.wait()
        return self._sizes.popleft()

    async def send(self, output: Output, data: bytes) -> None:
        """Give the client output. Raises ClientGoneError."""
        if (stream := self._streams.get(output.value)) is not None:
            await stream.write(data)

    async def finish(self, outcome: Outcome) -> None:
        """End the outputs, tell how it ended, and close the connection."""
        with contextlib.suppress(ClientGoneError):
            for name, stream in self._streams.items():
                if name != "error":
                    with contextlib.suppress(ClientGoneError):  # the client may have reset this one
                        await stream.end()
            if message := error_stream(outcome, self._protocol):
                await self._streams["error"].write(message)
            await self._streams["error"].end()
        await self.close()

    async def gone(self) -> None:
        """Return when the client has gone."""
        await self._connection.closed()

    async def close(self) -> None:
        """Stop listening to the client and close the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.close()

    async def _refuse_more(self) -> None:
        while (stream := await self._connection.accept()) is not None:
            await stream.refuse()

    async def _read_sizes(self, stream: SpdyStream) -> None:
        sizes = SizeStream()
        with contextlib.suppress(ClientGoneError):
            while data := await stream.read():
                if (size := sizes.newest(data)) is not None:
                    self._sizes.append(size)
                    self._resized.set()
        self._no_more_sizes = True
        self._resized.set()
