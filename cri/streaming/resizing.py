"""The size of a client's terminal, as Kubernetes tells it: `{"Width": 80, "Height": 24}` (client-go: TerminalSize)."""

from __future__ import annotations

from cri.sandbox.spec import TerminalSize


def terminal_size(fields: object) -> TerminalSize | None:
    """The size in a JSON object; None if it makes no sense, which does no harm."""
    if not isinstance(fields, dict):
        return None
    width, height = fields.get("Width"), fields.get("Height")
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    return TerminalSize(width, height) if 0 < width < 1 << 16 and 0 < height < 1 << 16 else None
