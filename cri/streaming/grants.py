"""Single-use permissions: whoever brings the token of a grant gets what was granted, once and soon.

The token is all that guards a session: the kubelet (or crictl) receives it in a URL, over the CRI's unix socket, and
uses it at once. It stands for a request that has been checked already. Nothing here, nor in who uses it, logs a token.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cri.errors import ResourceExhaustedError

LIFE = 60.0
"""Seconds in which a token must be used; containerd's, so what works with it works here."""

OUTSTANDING = 1000
"""Grants that may wait for their clients at the same time."""

TOKEN_BYTES = 24

T = TypeVar("T")


class Grants(Generic[T]):
    """What may be asked for at the moment."""

    def __init__(
        self,
        outstanding: int = OUTSTANDING,
        life: float = LIFE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells seconds from anywhere, never backwards."""
        self._outstanding = outstanding
        self._life = life
        self._clock = clock
        # In the order of their ends, as every grant lives for as long: what is over is always in front.
        self._grants: dict[str, tuple[float, T]] = {}

    def __len__(self) -> int:
        """How many grants wait, those included that are over and not yet forgotten."""
        return len(self._grants)

    def issue(self, granted: T) -> str:
        """A new token for this, fit for a URL. Raises ResourceExhaustedError."""
        now = self._clock()
        self._forget(now)
        if len(self._grants) >= self._outstanding:
            raise ResourceExhaustedError(
                f"{self._outstanding} streaming requests wait for their clients already; "
                f"each is forgotten {self._life:g} seconds after its URL was given out: try again later"
            )
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._grants[token] = (now + self._life, granted)
        return token

    def redeem(self, token: str) -> T | None:
        """What the token stands for, and never again; None if it is unknown, used, or over."""
        end, granted = self._grants.pop(token, (0.0, None))
        return granted if granted is not None and self._clock() < end else None

    def _forget(self, now: float) -> None:
        while self._grants:
            token = next(iter(self._grants))
            if self._grants[token][0] > now:
                break
            del self._grants[token]
