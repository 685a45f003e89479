"""A container's standard input, fed by whoever is attached to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.loop import READ, WRITE, Watcher

_CHUNK = 64 * 1024
_LAST_WORDS = 1024 * 1024 + _CHUNK
"""Bytes that may wait for the program when a client goes away: what its pipe holds, but not those of one client after another."""

ENDED_ONCE = "it has been closed: somebody's stdin has ended, and the container has stdin_once"
NOBODY_READS = "the program has closed it"
PROGRAM_ENDED = "the program has ended"


@dataclass(eq=False)
class Source:
    """A descriptor that input comes from."""

    fd: int
    ended: Callable[[], None]
    """Called when it is closed, other than by `Stdin.remove`."""
    watched: bool = False


class Stdin:
    """Takes turns with its sources, a chunk each, and hears nobody while the program has not taken the last one."""

    def __init__(
        self, loop: Watcher, fd: int, *, once: bool, terminal: bool, name: str = "a container's stdin"
    ) -> None:
        """`fd`, a pipe or a terminal, is its own from now on, and stays open: one source's end is not the program's.

        With `once` it is, except on a terminal, which has no end of its own. `name` is for what is told to people.
        """
        self.closed = ""
        """Why it takes nothing any more."""
        self._loop = loop
        self._fd = fd
        self._once = once and not terminal
        self._name = name
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
            self._listen(source)
            if self._busy:
                self._ignore(source)
        except OSError:
            os.close(fd)
            raise
        self._sources.append(source)
        return source

    def remove(self, source: Source) -> None:
        """Its client has gone: hear what it has written until now, as far as there is room, and close it."""
        while data := _read(source.fd):
            if len(self._waiting) >= _LAST_WORDS:
                warn(f"{self._name}: what a client wrote at last is lost, as the program does not read")
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
        """Wait for what it has to say. Raises OSError."""
        self._loop.watch(source.fd, READ, lambda _: self._take(source))
        source.watched = True

    def _ignore(self, source: Source) -> None:
        if source.watched:
            self._loop.unwatch(source.fd)
            source.watched = False

    def _take(self, source: Source) -> None:
        data = _read(source.fd)
        if data is None:
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
        """Wait for the program instead of the sources, or the other way round. Raises OSError if it closed its end."""
        if busy == self._busy:
            return
        if busy:
            self._loop.watch(self._fd, WRITE, lambda _: self._pass_on())
        else:
            self._loop.unwatch(self._fd)
        self._busy = busy
        for source in tuple(self._sources):
            if busy:
                self._ignore(source)
            elif source in self._sources:  # the end of one may be that of others
                self._listen_again(source)

    def _listen_again(self, source: Source) -> None:
        try:
            self._listen(source)
        except OSError as error:
            warn(f"{self._name}: a client cannot be waited for any more: {error.strerror}")
            self._drop(source)
            source.ended()

    def _drop(self, source: Source) -> None:
        self._sources.remove(source)
        self._ignore(source)
        os.close(source.fd)

    def _end(self, reason: str) -> None:
        """Nothing more may come."""
        self.closed = self.closed or reason
        for source in tuple(self._sources):
            self._drop(source)
            source.ended()


def _read(fd: int) -> bytes | None:
    """What a client has written: nothing at its end, however that came about, None if nothing is there yet."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:  # EIO of a terminal, ECONNRESET of a socket
        return b""
