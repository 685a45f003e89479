"""What a check yields."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Good to know; nothing is asked of the operator."""
    WARNING = "warning"
    """Pods run, but something is missing, or cannot be told."""
    FAILURE = "failure"
    """Pods do not run, or should not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen."""

    name: str
    """What was looked at: one word or an advisory's number, the same at every run."""
    level: Level
    message: str
    remedy: str = ""
    """The command or line that mends it; empty where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at."""

    name: str
    run: Callable[[], Iterable[Finding]]
    """May raise OSError where it cannot look."""


def ok(name: str, message: str) -> Finding:
    """All is well."""
    return Finding(name, Level.OK, message)


def note(name: str, message: str, remedy: str = "") -> Finding:
    """Good to know."""
    return Finding(name, Level.NOTE, message, remedy)


def warning(name: str, message: str, remedy: str = "") -> Finding:
    """Pods run, with a loss."""
    return Finding(name, Level.WARNING, message, remedy)


def failure(name: str, message: str, remedy: str = "") -> Finding:
    """Pods do not run, or should not."""
    return Finding(name, Level.FAILURE, message, remedy)
