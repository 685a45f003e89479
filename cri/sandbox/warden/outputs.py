"""What a container prints, on its way to the log and to those who are attached."""

from __future__ import annotations

import contextlib
import fcntl
import os
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


_LITTLE = 16 * 1024
_GATHER = 0.001
"""Seconds between reads of a program that writes little pieces in quick succession: several of them cost as much as one."""


@dataclass(eq=False, slots=True)
class _Output:
    """One stream."""

    fd: int
    name: str
    framer: Framer
    watched: bool = False
    read_at: float = 0.0


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
        output = _Output(fd, name, Framer(name))
        self._outputs.append(output)
        self.attachments.begin(name)
        self._watch(output)

    def drain(self) -> None:
        """Take over what was written so far, in bounded time, whoever is slow; streams that have ended are closed."""
        for output in tuple(self._outputs):
            for _ in range(_DRAIN_AT_EXIT):
                data = self._read(output)
                if not data:
                    if data is not None:
                        self._end(output)
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
        data = self._read(output)
        if data == b"":
            self._end(output)
        elif data is not None and len(data) < _LITTLE:
            now = time.monotonic()
            if now - output.read_at < _GATHER:
                self._unwatch(output)
                self._loop.later(_GATHER, lambda: self._watch(output))
            output.read_at = now

    def _read(self, output: _Output) -> bytes | None:
        """Take over what is there: nothing at the end of the stream, None if nothing is there yet."""
        try:
            data = os.read(output.fd, _READ)
        except BlockingIOError:
            return None
        except OSError:  # EIO: the last process has closed the terminal
            return b""
        if data:
            if self._log is not None:
                self._log.write(output.framer.feed(data, time.time_ns()))
            self.attachments.feed(output.name, data)
        return data

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
