"""A container's standard input, fed by whoever is attached to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cri.sandbox.warden.loop import READ, WRITE, Watcher

_CHUNK = 64 * 1024
_LAST_CHUNKS = 64
"""Of what a client had written when it went away: as much as its pipe holds, not what somebody writes without end."""

ENDED_ONCE = "it has been closed: somebody's stdin has ended, and the container has stdin_once"
NOBODY_READS = "the program has closed it"
PROGRAM_ENDED = "the program has ended"


@dataclass(eq=False)
class Source:
    """A descriptor that input comes from."""

    fd: int
    ended: Callable[[], None]
    """Called when it is closed, other than by `Stdin.remove`."""


class Stdin:
    """Takes turns with its sources, a chunk each, and hears nobody while the program has not taken the last one."""

    def __init__(self, loop: Watcher, fd: int, *, once: bool, terminal: bool) -> None:
        """`fd`, a pipe or a terminal, is its own from now on, and stays open: one source's end is not the program's.

        With `once` it is, except on a terminal, which has no end of its own.
        """
        self.closed = ""
        """Why it takes nothing any more."""
        self._loop = loop
        self._fd = fd
        self._once = once and not terminal
        self._sources: list[Source] = []
        self._waiting = bytearray()
        """What the program has not taken yet."""
        self._busy = False
        """Whether the program is waited for, and not the sources."""
        os.set_blocking(fd, False)

    def add(self, fd: int, ended: Callable[[], None]) -> Source:
        """Take input from a descriptor, too, which is its own from now on.

        Raises OSError, and closes it, if it cannot be waited for.
        """
        source = Source(fd, ended)
        try:
            os.set_blocking(fd, False)
            if not self._busy:
                self._listen(source)
        except OSError:
            os.close(fd)
            raise
        self._sources.append(source)
        return source

    def remove(self, source: Source) -> None:
        """Its client has gone: hear what it has written until now, and close it."""
        for _ in range(_LAST_CHUNKS):
            try:
                data = os.read(source.fd, _CHUNK)
            except OSError:
                break
            if not data:
                break
            self._waiting += data
        self._drop(source)
        if self._once:
            self._end(ENDED_ONCE)
        self._pass_on()

    def close(self, reason: str) -> None:
        """Close it at once, and its sources. May be repeated."""
        self._waiting.clear()
        self._end(reason)
        self._pass_on()

    def _listen(self, source: Source) -> None:
        self._loop.watch(source.fd, READ, lambda _: self._take(source))

    def _take(self, source: Source) -> None:
        try:
            data = os.read(source.fd, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._waiting += data
        else:
            self._drop(source)
            if self._once:
                self._end(ENDED_ONCE)
            source.ended()
        self._pass_on()

    def _pass_on(self) -> None:
        """Give the program what it takes; close its stdin when nothing is left and nothing more may come."""
        if self._waiting:
            try:
                del self._waiting[: os.write(self._fd, self._waiting)]
            except BlockingIOError:
                pass
            except OSError:  # EPIPE; on a terminal EIO
                self.close(NOBODY_READS)
                return
        try:
            self._turn(busy=bool(self._waiting))
        except OSError:
            self.close(NOBODY_READS)
            return
        if self.closed and not self._waiting and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _turn(self, *, busy: bool) -> None:
        """Wait for the program instead of the sources, or the other way round. Raises OSError."""
        if busy == self._busy:
            return
        if busy:
            self._loop.watch(self._fd, WRITE, lambda _: self._pass_on())
        else:
            self._loop.unwatch(self._fd)
        self._busy = busy
        for source in self._sources:
            if busy:
                self._loop.unwatch(source.fd)
            else:
                self._listen(source)

    def _drop(self, source: Source) -> None:
        self._sources.remove(source)
        if not self._busy:
            self._loop.unwatch(source.fd)
        os.close(source.fd)

    def _end(self, reason: str) -> None:
        """Nothing more may come."""
        self.closed = self.closed or reason
        for source in tuple(self._sources):
            self._drop(source)
            source.ended()
