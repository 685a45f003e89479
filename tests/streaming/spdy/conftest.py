"""A client without a socket: it sees every frame, and reads only when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from cri.streaming.spdy.codec import Decoder, Encoder
from cri.streaming.spdy.connection import Limits, SpdyConnection, SpdyStream
from cri.streaming.spdy.frames import Data, Frame, GoAway, Settings, SynStream, WindowUpdate
from cri.streaming.spdy.headers import HeaderBlock


class Pipe:
    """The server's end of a connection (`wire.Wire`), and the handles of the client's."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent = bytearray()
        self.reads = 0
        self.closed = self.aborted = False
        self._room = room
        self._drained = asyncio.Event()

    async def read(self) -> bytes:
        if self.aborted:
            return b""
        self.reads += 1
        return await self.incoming.get()

    async def write(self, *parts: bytes) -> None:
        if self.aborted:
            raise ConnectionError("gone")
        for part in parts:
            self.sent += part
        while len(self.sent) > self._room:
            self._drained.clear()
            await self._drained.wait()
            if self.aborted:
                raise ConnectionError("gone")

    async def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True
        self.incoming.put_nowait(b"")
        self._drained.set()

    def take(self) -> bytes:
        data = bytes(self.sent)
        self.sent.clear()
        self._drained.set()
        return data


class Client:
    """The client, frame by frame."""

    def __init__(self, connection: SpdyConnection, pipe: Pipe) -> None:
        self.connection = connection
        self.pipe = pipe
        self._encoder = Encoder()
        self._decoder = Decoder(Limits())
        self.received: list[Frame] = []
        self._next = 1

    def send(self, *frames: Frame) -> None:
        self.pipe.incoming.put_nowait(b"".join(map(self._encoder.encode, frames)))

    def send_raw(self, data: bytes) -> None:
        self.pipe.incoming.put_nowait(data)

    def take(self) -> list[Frame]:
        """What the server has sent since the last call."""
        frames = list(self._decoder.feed(self.pipe.take()))
        self.received += frames
        return frames

    async def frames(self) -> list[Frame]:
        """Likewise, until nothing moves any more."""
        frames: list[Frame] = []
        quiet = False
        while not quiet:
            await settle()
            new = self.take()
            frames += new
            quiet = not new
        return frames

    async def open(self, *, fin: bool = False, **headers: str) -> SpdyStream:
        """A stream that both sides agree upon."""
        self.send(SynStream(self._next, HeaderBlock(headers), fin=fin))
        self._next += 2
        stream = await asyncio.wait_for(self.connection.accept(), 5)
        assert stream is not None
        await stream.reply()
        return stream


async def settle() -> None:
    """Let everybody come as far as they get."""
    for _ in range(50):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _client(limits: Limits, room: int) -> AsyncIterator[Client]:
    pipe = Pipe(room)
    connection = SpdyConnection(pipe, limits=limits)
    running = asyncio.create_task(connection.run())
    client = Client(connection, pipe)
    await settle()
    assert [type(frame) for frame in client.take()] in ([Settings, WindowUpdate], [Settings])
    try:
        yield client
    finally:
        connection.abort()
        await asyncio.wait_for(running, 5)
        names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
        assert not [name for name in names if name.startswith("SpdyConnection")], "a task was left over"


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., object]]:
    """`await connect()` gives a Client; its server ends with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(room: int = 1 << 20, **limits: int) -> Client:
            return await stack.enter_async_context(_client(Limits(**limits), room))

        yield make


@pytest.fixture
def data_of() -> Callable[[list[Frame], int], bytes]:
    return lambda frames, number: b"".join(
        frame.data for frame in frames if isinstance(frame, Data) and frame.stream_id == number
    )


@pytest.fixture
def goaway_of() -> Callable[[list[Frame]], list[int]]:
    return lambda frames: [frame.status for frame in frames if isinstance(frame, GoAway)]
