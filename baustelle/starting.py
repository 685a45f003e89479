"""Threads that are started without keeping an event loop waiting.

`Thread.start` returns when the thread runs, for which it needs the interpreter: milliseconds, where others compute.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

_Wanted = tuple[threading.Thread, Callable[[BaseException], object]]


class Starter:
    """A thread that starts others. It is made for the first of them, and stays."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[_Wanted] = queue.SimpleQueue()
        self._runs = False

    def start(self, thread: threading.Thread, failed: Callable[[BaseException], object]) -> None:
        """Have a thread started. To be called by one thread only: that of the event loop.

        If there can be no more of them, `failed` is called with the error, in whatever thread.
        """
        if not self._runs:
            try:
                threading.Thread(target=self._run, name="starter", daemon=True).start()
            except RuntimeError as error:
                failed(error)
                return
            self._runs = True
        self._wanted.put((thread, failed))

    def _run(self) -> None:
        while True:
            _start(*self._wanted.get())


def _start(thread: threading.Thread, failed: Callable[[BaseException], object]) -> None:
    try:
        thread.start()
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to who waits for the thread
        with contextlib.suppress(RuntimeError):  # the loop that waited has been closed
            failed(error)


STARTER = Starter()
"""That of this process, which does not fork once it unpacks."""
