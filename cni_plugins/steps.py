"""Work in several steps: all or nothing, or as much as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from cni_plugins.errors import NetworkError

Undo: TypeAlias = Callable[[Callable[[], object]], None]


@contextmanager
def undoing() -> Iterator[Undo]:
    """Give a function that takes, after each step, what undoes it; an error undoes them all, the last one first.

    That error stays the one that the caller hears of, with notes of what could not be undone.
    """
    steps: list[Callable[[], object]] = []
    try:
        yield steps.append
    except BaseException as error:
        for step in reversed(steps):
            try:
                step()
            except NetworkError as second:
                error.add_note(f"and the undo failed: {second}")
        raise


def all_of(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step, whatever the others come to; then raise the first NetworkError, with notes of the rest."""
    failures: list[NetworkError] = []
    for step in steps:
        try:
            step()
        except NetworkError as error:
            failures.append(error)
    if failures:
        first, *others = failures
        for other in others:
            first.add_note(f"and {other}")
        raise first
