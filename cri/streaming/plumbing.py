"""Between a client's session and the streams of a process, the same for exec and attach."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import termios
from collections.abc import Coroutine
from fcntl import ioctl
from typing import Any, Self

from cri.sandbox.spec import TerminalSize
from cri.streaming.activity import Activity
from cri.streaming.descriptors import CHUNK, Sink, Source, pipe
from cri.streaming.session import ClientGoneError, CommandSession, Output, Streams

SLOW = 0.1
"""Seconds for which a client that keeps up never makes a sender wait."""

SIP = 4 * 1024
"""Bytes of output to take at a time for a client that does not keep up."""


class Plumbing:
    """The process's ends as descriptors to hand out, and ours, with what flows between them and the session.

    As a context manager it closes whatever of it is open in the end.
    """

    def __init__(self, session: CommandSession, activity: Activity, chunk: int = CHUNK) -> None:
        """At most `chunk` bytes of an output are taken at a time."""
        self.stdin_ended = asyncio.Event()
        """The client has ended its stdin, and the process has it all."""
        self.stdin: int | None = None
        self.stdout: int | None = None
        self.stderr: int | None = None
        self._session = session
        self._activity = activity
        self._chunk = chunk
        self._sink: Sink | None = None
        self._sources: dict[Output, Source] = {}
        self._stdin_ends = True
        self._pty = -1
        self._tasks: list[asyncio.Task[None]] = []
        self._outputs: list[asyncio.Task[None]] = []

    @classmethod
    def pipes(cls, session: CommandSession, activity: Activity, streams: Streams, chunk: int = CHUNK) -> Self:
        """With a pipe for each stream that was asked for. Raises OSError."""
        made = cls(session, activity, chunk)
        with contextlib.ExitStack() as undo:
            undo.callback(made._close_descriptors)
            if streams.stdin:
                made.stdin, writer = pipe()
                made._sink = Sink(writer)
            if streams.stdout:
                reader, made.stdout = pipe()
                made._sources[Output.STDOUT] = Source(reader)
            if streams.stderr:
                reader, made.stderr = pipe()
                made._sources[Output.STDERR] = Source(reader)
            undo.pop_all()
        return made

    def use_terminal(self, pty: int) -> None:
        """Be connected to a terminal instead, whose descriptor stays the caller's. Raises OSError."""
        self._sink = Sink(os.dup(pty))
        self._sources[Output.STDOUT] = Source(os.dup(pty))
        # A terminal has no half close; its program is told by the character that its user types.
        self._stdin_ends = False
        self.resize_terminal(pty)

    def resize_terminal(self, pty: int) -> None:
        """Follow the client's terminal with this one. Raises OSError."""
        self._pty = os.dup(pty)

    def handed_out(self) -> None:
        """Close the ends that the process has copies of: otherwise no stream would ever end."""
        for name in ("stdin", "stdout", "stderr"):
            if (fd := getattr(self, name)) is not None:
                os.close(fd)
                setattr(self, name, None)

    def open(self) -> None:
        """Let it flow."""
        if self._sink is not None:
            self._start(self._feed(self._sink))
        if self._pty >= 0:
            self._start(self._resize())
        self._outputs = [self._start(self._deliver(output, one)) for output, one in self._sources.items()]

    async def outputs(self) -> None:
        """Wait until all outputs have ended, and the client has what it wanted of them."""
        await asyncio.gather(*self._outputs)

    async def rest(self, patience: float) -> None:
        """Wait for what is left of the output of a process that has ended.

        What it left behind in the background may hold a pipe open for ever: `patience` seconds of silence are the end.
        """
        for source in self._sources.values():
            source.expect_end(patience)
        await self.outputs()

    async def close(self) -> None:
        """Stop the flow and close everything; succeeds if repeated."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self.handed_out()
        for end in (self._sink, *self._sources.values()):
            if end is not None:
                end.close()
        if self._pty >= 0:
            os.close(self._pty)
            self._pty = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _start(self, flow: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(flow)
        self._tasks.append(task)
        return task

    async def _feed(self, sink: Sink) -> None:
        wanted = True
        with contextlib.suppress(ClientGoneError):  # then that is the end of its stdin
            while data := await self._session.stdin():
                self._activity.mark()
                # What nobody wants is read all the same: behind it may come the client's end, or a new terminal size.
                wanted = wanted and await sink.write(data)
            self.stdin_ended.set()
        if self._stdin_ends:
            sink.close()

    async def _deliver(self, output: Output, source: Source) -> None:
        loop = asyncio.get_running_loop()
        limit = min(self._chunk, SIP)
        wanted = True
        while data := await source.read(limit):
            self._activity.mark()
            began = loop.time()
            try:
                if wanted:
                    await self._session.send(output, data)
            except ClientGoneError:
                # It may have given up this output alone, and the process is not to wait for it.
                wanted = False
            # A warden lets go of who takes nothing for a second: for a slow client, take a little and often.
            limit = min(self._chunk, 2 * limit if loop.time() - began < SLOW else SIP)

    async def _resize(self) -> None:
        while (size := await self._session.resized()) is not None:
            with contextlib.suppress(OSError):  # the terminal has been hung up
                set_size(self._pty, size)


def set_size(pty: int, size: TerminalSize) -> None:
    """Tell a terminal and its programs (SIGWINCH) how big it is: TIOCSWINSZ of tty(4). Raises OSError."""
    ioctl(pty, termios.TIOCSWINSZ, struct.pack("4H", size.height, size.width, 0, 0))
