"""The size of a client's terminal, as Kubernetes tells it: `{"Width": 80, "Height": 24}` (client-go: TerminalSize)."""

from __future__ import annotations

import json

from cri.sandbox.spec import TerminalSize

MAX_SIZE = 1024
"""Bytes of a size as JSON; of more, only so many are looked at, as this is done on the event loop."""


def terminal_size(text: bytes) -> TerminalSize | None:
    """The size in the text of a JSON object; None if it makes no sense, which does no harm."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    width, height = fields.get("Width"), fields.get("Height")
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    return TerminalSize(width, height) if 0 < width < 1 << 16 and 0 < height < 1 << 16 else None


class SizeStream:
    """JSON objects one after the other, in pieces that may end anywhere.

    Only the last size matters, and an object of numbers has no braces inside. So the end of what has come is enough,
    and whatever a client sends is looked at in a time that does not depend on how much it is.
    """

    def __init__(self) -> None:
        self._rest = b""
        """What may be the beginning of an object."""

    def newest(self, data: bytes) -> TerminalSize | None:
        """The last size in what has come; None if there is no new one."""
        *objects, self._rest = (self._rest + data[-MAX_SIZE:])[-MAX_SIZE:].split(b"}")
        for one in reversed(objects):
            if (size := terminal_size(one[one.rfind(b"{") :] + b"}")) is not None:
                return size
        return None
