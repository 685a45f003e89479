"""Undo stacks: a transition that fails half-way leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger(__name__)


class UndoStack:
    """What to do, last first, if the body of the `async with` fails.

    Each action runs even if an earlier one failed, and the whole unwinding runs to its end even if the task is
    cancelled meanwhile. A failing action is logged with its name; the error that leaves the body is the body's own.
    """

    def __init__(
        self,
        transition: str,
        spare: Callable[[], AbstractContextManager[object]] = nullcontext,
        failed: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`spare` gives what undoing may need and has run out: see `Node.spare_descriptors`.

        `failed` is told what could not be taken back.
        """
        self._transition = transition
        self._spare = spare
        self._failed = failed
        self._actions: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    def push(self, what: str, action: Callable[[], Awaitable[object]]) -> None:
        """Remember how to take back `what`; call it before the step is begun or right after it is done."""
        self._actions.append((what, action))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._actions:
            await asyncio.shield(asyncio.ensure_future(self._unwind(error)))

    async def _unwind(self, cause: BaseException) -> None:
        log.warning(
            "undoing", transition=self._transition, steps=len(self._actions), cause=str(cause) or repr(cause)
        )
        with self._spare():
            while self._actions:
                what, action = self._actions.pop()
                try:
                    await action()
                except Exception:
                    # Going on undoes the most. What lingers has no record any more, and is found by that at the next start.
                    log.exception("undo failed", transition=self._transition, step=what)
                    self._failed(what)
