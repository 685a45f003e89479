"""JSON of others: what can be read of it can be written again, by whomever it is told to."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse(text: bytes | str) -> Any:
    """Read a document. Raises ValueError for what is no JSON, or holds what no JSON of UTF-8 can (NaN, half a surrogate)."""
    try:
        read = json.loads(text, parse_constant=_refuse)
        json.dumps(read, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair, {error.object[error.start]!a}, is no text") from None
    return read


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
