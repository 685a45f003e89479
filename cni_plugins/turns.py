"""Who may go when: calls of one container one after another, those of all others at once, and some calls alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cni_plugins.errors import ClosedError

_PATIENCE = 10.0
"""Seconds that whoever wants to be alone waits for a moment when nobody passes."""
_HOLD = 1.0
"""Seconds for which newcomers are held up then. Longer they are not, however long somebody takes to pass."""


class Gate:
    """Many may pass at a time, or one be alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._passing = 0
        self._alone = False
        self._held = False
        self._closed = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Be one of many. Raises ClosedError once it is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or not (self._alone or self._held))
            if self._closed:
                raise ClosedError(
                    "the network's runtime has ended; start it again, and what is half done is finished"
                )
            self._passing += 1
        try:
            yield
        finally:
            with self._condition:
                self._passing -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self, *, close: bool = False) -> Iterator[None]:
        """Be the only one; with `close` the last one, for whom newcomers do not wait but fail."""
        with self._condition:
            self._closed = self._closed or close
            self._condition.notify_all()
            while not self._condition.wait_for(self._is_free, None if close else _PATIENCE):
                self._held = True
                self._condition.wait_for(self._is_free, _HOLD)
                self._held = False
                self._condition.notify_all()
            self._alone = True
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()

    def _is_free(self) -> bool:
        return not self._alone and not self._passing


class Turns:
    """A lock per name, which is there as long as somebody has it or waits for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Wait for one's turn with a name."""
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[name]
                if users == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = lock, users - 1
