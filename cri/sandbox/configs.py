"""CRI messages that were written down."""

from __future__ import annotations

from typing import TypeVar

import betterproto2

M = TypeVar("M", bound=betterproto2.Message)


def parse(kind: type[M], data: bytes) -> M:
    """The message in `data`. Raises ValueError for bytes that are none."""
    try:
        return kind.parse(data)
    except Exception as error:
        # The codec raises whatever it stumbles over: EOFError, struct.error, TypeError.
        raise ValueError(f"no {kind.__name__}: {type(error).__name__}: {error}") from error
