"""A warden's event loop: descriptors, timers and children, in one thread.

Smaller than asyncio, which would cost each pod megabytes; and nothing that a callback raises ends it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from cri.sandbox.warden.journal import warn

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

FileObject = int | socket.socket
_LOST = 255 << 8
"""The wait status of a child whose own is not known: exit code 255, as everywhere."""


class Watcher(Protocol):
    """What those need of a loop who move bytes from one descriptor to another."""

    def watch(self, file: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events that are possible, or change the events that are waited for.

        Raises OSError for what cannot be waited for (kqueue(2) says so of a pipe without a reader).
        """

    def unwatch(self, file: int) -> None:
        """Stop calling back; before the file is closed."""

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call once, later."""


class Loop:
    """Calls back when something can be read or written, when a time has come, when a child has ended."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self.children: dict[int, Callable[[int], None]] = {}
        """What to call with the wait status of each child."""
        self.births = 0
        """How many children may come that are not known yet: those of a launcher."""
        self._unclaimed: dict[int, int] = {}
        """The wait statuses of children that were not known, while some may come."""

    def adopt(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call with the wait status of a child that others have made, also if it was reaped already.

        `births` must have counted it from before it was made.
        """
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            status = self._unclaimed.pop(pid, _LOST)
            self.later(0, lambda: ended(status))
        else:
            # An orphan of this number, if there was one, has been reaped before this one was born.
            self._unclaimed.pop(pid, None)
            self.children[pid] = ended

    def born(self) -> None:
        """One child less to come: it was adopted, or will not come."""
        self.births -= 1
        if self.births == 0:
            self._unclaimed.clear()

    def catch_signals(self, handlers: Mapping[int, Callable[[], None]]) -> None:
        """Learn of ended children, and call a handler in its turn for a signal; ignore what ends a process. KILL remains."""
        for number in (
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGQUIT,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):
            signal.signal(number, signal.SIG_IGN)
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.detach(), warn_on_full_buffer=False)
        for heard in (signal.SIGCHLD, *handlers):
            # Without a handler, nothing would be written to `wake`.
            signal.signal(heard, lambda *_: None)
        self.watch(woken, READ, lambda _: self._signalled(woken, handlers))

    def watch(self, file: FileObject, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events that are possible, or change the events that are waited for."""
        known = self._selector.get_map().get(file)
        if known is None:
            self._selector.register(file, events, callback)
        elif known.events != events:
            self._selector.modify(file, events, callback)

    def unwatch(self, file: FileObject) -> None:
        """Stop calling back; before the file is closed."""
        self._selector.unregister(file)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call once, later."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), action))

    def turn(self) -> None:
        """Wait for something to happen, and call who waits for it."""
        timeout = max(self._timers[0][0] - time.monotonic(), 0) if self._timers else None
        for key, events in self._selector.select(timeout):
            # An earlier callback of this round may have closed it, and its number may be in use again.
            if self._selector.get_map().get(key.fd) is key:
                _call(key.data, events)
        while self._timers and self._timers[0][0] <= time.monotonic():
            _call(heapq.heappop(self._timers)[2])

    def close(self) -> None:
        """Watch nothing any more."""
        self._selector.close()

    def _signalled(self, woken: socket.socket, handlers: Mapping[int, Callable[[], None]]) -> None:
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = woken.recv(4096)  # a byte for each signal: signal.set_wakeup_fd
        self._reap()
        for number in handlers.keys() & set(numbers):
            _call(handlers[number])

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self.children.pop(pid, None)
            if ended is not None:
                _call(ended, status)
            elif self.births:
                self._unclaimed[pid] = status  # else an orphan that a container left to us


def _call(action: Callable[..., None], *arguments: object) -> None:
    try:
        action(*arguments)
    except Exception as error:  # noqa: BLE001  # a pod must not end because its warden has a flaw
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where is not None else "?"
        warn(f"{type(error).__name__}: {error} ({line})")
