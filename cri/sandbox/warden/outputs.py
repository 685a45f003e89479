"""What a container prints, on its way to the log and to those who are attached."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import sys
import time
from dataclasses import dataclass

from cri.sandbox.warden.attachments import Attachments
from cri.sandbox.warden.logs import Framer, LogFile
from cri.sandbox.warden.loop import READ, Watcher

_READ = 64 * 1024
_PIPE = 1024 * 1024
"""Bytes that a pipe holds (Linux; FreeBSD decides by itself): how far a program gets while its warden does something else."""
_DRAIN_AT_EXIT = 64
"""Reads per stream at exit: a background process that writes without end must not hold the exit back."""
_GATHER = 0.001
"""Seconds that a pipe rests between little reads in quick succession.

Many pieces then cost as much as one, and their program is not held up: a pipe holds more than is written meanwhile. What that
costs is a delay, for the log and for who is attached. A terminal holds a few kilobytes only, and never rests.
"""
_LITTLE = (16 if sys.platform == "linux" else 8) * 1024
"""Bytes; a read of as many was worth its cost, or (FreeBSD, sys/pipe.h, PIPE_MINDIRECT) its writer waits for the next."""
_ALONE = 0.1
"""Seconds without a word from the other stream, after which a pipe may rest: nobody could tell later what came first."""


@dataclass(eq=False, slots=True)
class _Output:
    """One stream."""

    fd: int
    name: str
    framer: Framer
    terminal: bool
    watched: bool = False
    read_at: float = -math.inf
    """When it last had something."""
    little_at: float = -math.inf
    """The same, if that was less than `_LITTLE`."""


class Outputs:
    """The output streams of one container: read as they come, logged first, then given to who is attached."""

    def __init__(self, loop: Watcher, log: LogFile | None) -> None:
        self.attachments = Attachments(loop, self._hold)
        self._loop = loop
        self._log = log
        self._outputs: list[_Output] = []
        self._held = False

    def add(self, name: str, fd: int) -> None:
        """Read a stream, stdout or stderr; the descriptor is its own from now on."""
        os.set_blocking(fd, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # no pipe, or no right to a big one
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)
        output = _Output(fd, name, Framer(name), os.isatty(fd))
        self._outputs.append(output)
        self.attachments.begin(name)
        self._watch(output)

    def drain(self) -> None:
        """Take over what was written so far, in bounded time, whoever is slow; streams that have ended are closed."""
        # What rests has older content.
        for output in sorted(self._outputs, key=lambda output: output.watched):
            for _ in range(_DRAIN_AT_EXIT):
                if not self._take(output):
                    break

    def close(self) -> None:
        """Close all streams. May be repeated."""
        for output in tuple(self._outputs):
            self._end(output)

    def _watch(self, output: _Output) -> None:
        if not self._held and not output.watched and output in self._outputs:
            self._loop.watch(output.fd, READ, lambda _: self._pump(output))
            output.watched = True

    def _unwatch(self, output: _Output) -> None:
        if output.watched:
            self._loop.unwatch(output.fd)
            output.watched = False

    def _pump(self, output: _Output) -> None:
        for other in tuple(self._outputs):
            if not other.watched:  # it rests, and what it has was printed before what woke us
                self._take(other)
        if self._held:
            return
        little_before = output.little_at
        size = self._take(output)
        in_succession = 0 < size < _LITTLE and output.read_at - little_before < _GATHER
        if in_succession and not output.terminal and self._is_alone(output):
            self._unwatch(output)
            self._loop.later(_GATHER, lambda: self._watch(output))

    def _is_alone(self, output: _Output) -> bool:
        return all(output.read_at - other.read_at > _ALONE for other in self._outputs if other is not output)

    def _take(self, output: _Output) -> int:
        """Pass on what is there, and how much that was; a stream that has ended is closed."""
        data = self._read(output)
        if data:
            output.read_at = time.monotonic()
            output.little_at = output.read_at if len(data) < _LITTLE else -math.inf
            if self._log is not None:
                self._log.write(output.framer.feed(data, time.time_ns()))
            self.attachments.feed(output.name, data)
        elif data is not None:
            self._end(output)
        return len(data or b"")

    def _read(self, output: _Output) -> bytes | None:
        """What is there: nothing at the end of the stream, None if nothing is there yet."""
        try:
            return os.read(output.fd, _READ)
        except BlockingIOError:
            return None
        except OSError:  # EIO: the last process has closed the terminal
            return b""

    def _end(self, output: _Output) -> None:
        """Close a stream; a last line without an end goes to the log."""
        self._outputs.remove(output)
        self._unwatch(output)
        os.close(output.fd)
        if self._log is not None:
            self._log.write(output.framer.flush(time.time_ns()))
        self.attachments.end(output.name)

    def _hold(self, hold: bool) -> None:
        """Stop reading, so that the process waits, or go on."""
        self._held = hold
        for output in self._outputs:
            if hold:
                self._unwatch(output)
            else:
                self._watch(output)
