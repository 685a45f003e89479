"""What the daemon holds on to in a warden: execs and attachments, each of which ends once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from cri.sandbox.host import Attachment, Exec, HostError

Outcome = TypeVar("Outcome", int, str)
"""How one ended: an exec with its exit code, an attachment with a reason."""

LetGo = Callable[[str], Coroutine[Any, Any, None]]
"""Has the warden end the one of this name; succeeds when that, or the warden, is gone."""


class Handles(Generic[Outcome]):
    """Those of one kind and connection, by the names that the warden gave them.

    Their ends come as events, which may be here before the task that asked for a handle has run again.
    """

    def __init__(self) -> None:
        self._live: dict[str, Handle[Outcome]] = {}
        self._early: dict[str, Outcome] = {}
        self._unwanted: set[str] = set()

    def add(self, name: str, handle: Handle[Outcome]) -> None:
        """Tell this handle of its end."""
        if name in self._early:
            handle.ended(self._early.pop(name))
        else:
            self._live[name] = handle

    def disown(self, name: str) -> None:
        """Nobody is to be told of this one's end, which has not been passed on yet."""
        self._live.pop(name, None)
        if name in self._early:
            del self._early[name]
        else:
            self._unwanted.add(name)

    def ended(self, name: str, outcome: Outcome) -> None:
        """Pass an end on."""
        if (handle := self._live.pop(name, None)) is not None:
            handle.ended(outcome)
        elif name in self._unwanted:
            self._unwanted.discard(name)
        else:
            self._early[name] = outcome

    def lost(self, error: HostError) -> None:
        """The connection has ended."""
        for handle in self._live.values():
            handle.lost(error)
        self._live.clear()


class Handle(Generic[Outcome]):
    """One of them: it ends once, is waited for, and let go of."""

    def __init__(self, name: str, pty: int | None, handles: Handles[Outcome], let_go: LetGo) -> None:
        self.pty = pty
        self._name = name
        self._handles: Handles[Outcome] = handles
        self._let_go = let_go
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Outcome:
        """Wait for its end."""
        return await asyncio.shield(self._outcome)

    async def close(self) -> None:
        """Let go of it."""
        if self.pty is not None:
            os.close(self.pty)
            self.pty = None
        try:
            await self._end()
        finally:
            if not self._outcome.done():
                self._handles.disown(self._name)
                self._outcome.cancel()

    def ended(self, outcome: Outcome) -> None:
        """It has ended."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def lost(self, error: HostError) -> None:
        """The warden is gone, and it with that."""
        if not self._outcome.done():
            self._outcome.set_exception(error)
            self._outcome.exception()  # nobody may be waiting

    async def _end(self) -> None:
        if not self._outcome.done():
            await self._let_go(self._name)


class WardenExec(Handle[int], Exec):
    """A process in a container."""

    def __init__(self, name: str, pid: int, pty: int | None, handles: Handles[int], kill: LetGo) -> None:
        super().__init__(name, pty, handles, kill)
        self.pid = pid

    async def kill(self) -> None:
        """KILL the process and everything in its session."""
        await self._end()


class WardenAttachment(Handle[str], Attachment):
    """Streams that are connected to a container's first process."""
