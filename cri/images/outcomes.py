"""How a pull has ended, in one word: what the metrics count by."""

from __future__ import annotations

import asyncio

from baustelle.errors import UnpackError
from cri.errors import ResourceExhaustedError, UnavailableError
from registratur import errors as registry

_WORDS: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    ("cancelled", (asyncio.CancelledError, UnavailableError)),
    ("not_found", (registry.NotFoundError, registry.NoMatchingPlatformError)),
    ("denied", (registry.UnauthorizedError,)),
    ("unreachable", (registry.UnavailableError, registry.TransportError)),
    (
        "corrupt",
        (
            registry.DigestMismatchError,
            registry.MalformedContentError,
            registry.UnsupportedContentError,
            UnpackError,
        ),
    ),
    ("no_space", (ResourceExhaustedError,)),
)


def word(error: BaseException | None) -> str:
    """One of `cri.metrics.PULL_OUTCOMES`; None is a pull that went well, and what has no word of its own has failed."""
    if error is None:
        return "pulled"
    return next((found for found, kinds in _WORDS if isinstance(error, kinds)), "failed")
