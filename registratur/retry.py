"""How long to wait before the next try."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter; `base` and `cap` in seconds, `tries` counts the first one too.

    A server may ask for as many as `patience` seconds (Retry-After).
    """

    tries: int = 5
    base: float = 0.25
    cap: float = 30.0
    patience: float = 120.0

    def is_too_long(self, retry_after: str | None) -> bool:
        """Say whether a server asks for more patience than there is."""
        asked = None if retry_after is None else parse_retry_after(retry_after)
        return asked is not None and asked > self.patience

    def delay(self, attempt: int, retry_after: str | None = None) -> float:
        """Return the seconds to wait after try `attempt` (from 0); not less than Retry-After asks for.

        There is a tenth on top of that at random: a whole cluster may have been told the same.
        """
        asked = None if retry_after is None else parse_retry_after(retry_after)
        if asked is not None:
            return asked * random.uniform(1.0, 1.1)  # noqa: S311 - jitter, no secret
        ceiling: float = min(self.base * 2.0**attempt, self.cap)
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


MIRROR_POLICY = RetryPolicy(tries=2, base=0.1, cap=1.0, patience=1.0)
"""For endpoints that have another one behind them: an ailing mirror is left, not waited for."""


def parse_retry_after(text: str) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), None if it is unreadable."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
