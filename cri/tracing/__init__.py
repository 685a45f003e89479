"""Spans: what a call is made of, and how long each part takes, for a collector of traces if one is configured.

Whoever does a part says so by `span`. Nothing happens as long as nobody collects, and nothing is imported for it:
`cri.tracing.otlp` is what `use` is given by the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

Metadata = Sequence[tuple[str, str | bytes]]
"""Of a gRPC call."""


class Span(Protocol):
    """A part of what is done, from the beginning of a `with` to its end; parts that begin within are parts of it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def set(self, name: str, value: object) -> None:
        """Say more of it. What is neither a number nor a truth is said as its text."""

    def answered(self, code: str, *, failed: bool) -> None:
        """Say with which gRPC status code the call was answered, and whether that tells of trouble here."""


class Tracer(Protocol):
    """Who collects. Nothing that it is told may block, or raise."""

    def span(self, name: str, attributes: Mapping[str, object]) -> Span:
        """A part of what the current task does."""

    def call(self, service: str, rpc: str, metadata: Metadata, *, current: bool) -> Span:
        """An RPC, as a part of what its caller does. With `current`, what is done in its task is a part of it."""


class _Nothing:
    """A span that nobody collects."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, name: str, value: object) -> None:
        """Nobody wants to know."""

    def answered(self, code: str, *, failed: bool) -> None:
        """Nobody wants to know."""


NOTHING: Span = _Nothing()

_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Have spans collected, or no more."""
    global _tracer  # noqa: PLW0603 - as there is one log, whoever writes to it
    _tracer = tracer


def tracer() -> Tracer | None:
    """Who collects, if anybody does."""
    return _tracer


def span(name: str, **attributes: object) -> Span:
    """A part of what the current task does. Attributes become texts only if somebody collects."""
    return NOTHING if _tracer is None else _tracer.span(name, attributes)
