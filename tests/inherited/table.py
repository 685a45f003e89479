"""docs/inherited.md, as tests read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/inherited.md"


@dataclass(frozen=True, slots=True)
class Row:
    """An attribute."""

    value: str | None
    """What a container reads; None where that depends on what was asked for."""
    told: str
    """The words."""


def rows(system: str) -> dict[str, Row]:
    """The table of a system, by attribute."""
    chapter = PAGE.read_text().split(f"\n## {system}\n")[1].split("\n## ")[0]
    found = {}
    for line in chapter.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0] == "attribute":
            continue
        name, _, told, _ = cells
        assert name not in found, name
        value = re.match(r"`([^`]*)`", told)
        found[name] = Row(value[1] if value else None, told)
    return found


def readings(text: str) -> dict[str, str]:
    """What a program of this directory has printed."""
    found = dict(line.split(": ", 1) for line in text.splitlines())
    assert len(found) == len(text.splitlines())
    return found
