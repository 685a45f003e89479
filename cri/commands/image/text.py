"""What people read: tables, sizes, and text of strangers that does nothing to a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

NONE = "<none>"
"""In the place of a name that there is not."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_GAP = "   "


def emit(text: str) -> None:
    """Write to standard output, whatever characters that has."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(text: str) -> None:
    """Tell of a failure, in one line."""
    sys.stderr.write(f"cri-jails: {clean(text)}\n")


def clean(text: str) -> str:
    """Text in one line, and without what a terminal would obey: such characters are escaped, as in Python."""
    words = " ".join(text.split())
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in words)


def shortened(text: str, width: int) -> str:
    """Text of at most so many characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def size(number: int) -> str:
    """Bytes, in three digits and in powers of 1000, as registries and crictl do: 4.86MB."""
    value, unit = float(number), 0
    # 999.5 would be shown as 1e+03.
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{_UNITS[unit]}" if value < 999.5 else f"{value:.0f}{_UNITS[unit]}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns, each as wide as its widest cell; nothing behind the last."""
    lines = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )
