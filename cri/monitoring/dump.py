"""SIGUSR1: what every thread and every task is doing, into the log.

The threads are told by faulthandler in the signal handler itself, without the interpreter: also when the loop stands still,
or whoever holds the interpreter never lets go of it. The tasks are told by the loop, once it turns.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
import traceback
from collections.abc import Coroutine, Generator, Iterator, Sequence
from typing import Any, TextIO

from cri.threads import in_own_thread

MOST_TASKS = 2000
"""Tasks that are told; with more the log would be of no use."""
SOME = 20
"""Tasks between two turns of the loop."""


class Dumper:
    """Answers SIGUSR1, from `install` on to `remove`."""

    def __init__(self, output: TextIO | None = None) -> None:
        """`output` has a descriptor."""
        self._output = output or sys.stderr
        self._loop = asyncio.get_running_loop()
        self._dumping: asyncio.Task[None] | None = None
        self._wanted = False
        """Somebody has asked since the last dump began."""

    def install(self) -> None:
        """Begin. In the main thread, on its loop."""
        self._loop.add_signal_handler(signal.SIGUSR1, self._asked)
        # Last, so that it comes first: it passes the signal on to the loop's handler when it has told the threads.
        faulthandler.register(signal.SIGUSR1, file=self._output, all_threads=True, chain=True)

    def remove(self) -> None:
        """End; from now on the signal is passed over, as it would end the daemon otherwise."""
        faulthandler.unregister(signal.SIGUSR1)
        self._loop.remove_signal_handler(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _asked(self) -> None:
        self._wanted = True
        if self._dumping is None or self._dumping.done():
            self._dumping = asyncio.create_task(self._dump_while_wanted(), name="dump of tasks")

    async def _dump_while_wanted(self) -> None:
        while self._wanted:
            self._wanted = False
            await self._dump()

    async def _dump(self) -> None:
        tasks = sorted(asyncio.all_tasks(self._loop), key=lambda task: task.get_name())
        found = []
        for number, task in enumerate(tasks[:MOST_TASKS]):
            if number % SOME == SOME - 1:
                await asyncio.sleep(0)
            if not task.done():
                found.append((task.get_name(), stack(task)))
        # The lines are read from the sources, and whoever reads the log may be slow.
        await in_own_thread(self._write, len(tasks), found)

    def _write(self, count: int, found: Sequence[tuple[str, traceback.StackSummary]]) -> None:
        told = "".join(f"Task {name}:\n{''.join(lines.format())}" for name, lines in found)
        self._output.write(f"{count} tasks\n{told}end of tasks\n")
        self._output.flush()


def stack(task: asyncio.Task[Any]) -> traceback.StackSummary:
    """The lines at which a task is, and what it waits for, and so on: its own stack has the outermost one only.

    It ends at an asynchronous generator, which tells nobody where it is.
    """
    return traceback.StackSummary.from_list(list(_lines(task.get_coro())))


def _lines(
    waiting: Coroutine[Any, Any, Any] | Generator[Any, Any, Any] | None,
) -> Iterator[traceback.FrameSummary]:
    now: Any = waiting
    while now is not None:
        for kind, waits_for in (("cr", "cr_await"), ("gi", "gi_yieldfrom")):
            frame = getattr(now, f"{kind}_frame", None)
            if frame is not None:
                code = frame.f_code
                yield traceback.FrameSummary(
                    code.co_filename, frame.f_lineno, code.co_name, lookup_line=False
                )
                now = getattr(now, waits_for)
                break
        else:
            return
