"""The handlers of RuntimeClasses: names only, as all of them run pods in the same way, from the same images."""

from __future__ import annotations

from collections.abc import Sequence

from cri.errors import InvalidArgumentError


def check(handler: str, configured: Sequence[str]) -> None:
    """See that a handler is configured; "" always is. Raises InvalidArgumentError."""
    if handler and handler not in configured:
        known = ", ".join(configured) or "none but the default"
        raise InvalidArgumentError(f"runtime handler {handler!r} is not configured; there is: {known}")
