"""Findings as a table for people, as JSON for programs, and as an exit status for scripts."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from cri.doctor.finding import Finding, Level

_COLOURS = {Level.OK: "32", Level.NOTE: "36", Level.WARNING: "33", Level.FAILURE: "1;31"}
"""Select Graphic Rendition parameters (ECMA-48)."""

_WIDTH = 110
"""Columns for those who write into a file."""


def exit_status(findings: Iterable[Finding], *, strict: bool = False) -> int:
    """0, or 1 if there is a failure; with `strict` a warning counts as one."""
    bad = {Level.FAILURE, Level.WARNING} if strict else {Level.FAILURE}
    return int(any(finding.level in bad for finding in findings))


def render_json(findings: Sequence[Finding]) -> str:
    """An object with `findings`, each of `name`, `level`, `message`, `remedy`, and how many there are of each level."""
    contents = {
        "summary": _count(findings),
        "findings": [
            {
                "name": finding.name,
                "level": finding.level.value,
                "message": finding.message,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }
    return json.dumps(contents, indent=2) + "\n"


def render_table(findings: Sequence[Finding], *, width: int | None = None, colour: bool = False) -> str:
    """A row for each finding, its remedy below it, and a line that sums up.

    A remedy is never broken into lines, so that it can be copied.
    """
    level_width = max(len(level.value) for level in Level)
    name_width = max((len(finding.name) for finding in findings), default=0)
    indent = " " * (level_width + name_width + 4)
    lines: list[str] = []
    for finding in findings:
        word = finding.level.value.ljust(level_width)
        if colour:
            word = f"\x1b[{_COLOURS[finding.level]}m{word}\x1b[0m"
        room = max((width or _WIDTH) - len(indent), 30)
        first, *rest = textwrap.wrap(finding.message, room, break_on_hyphens=False) or [""]
        lines.append(f"{word}  {finding.name.ljust(name_width)}  {first}")
        lines += [indent + line for line in rest]
        if finding.remedy:
            lines.append(f"{indent}-> {finding.remedy}")
    counts = ", ".join(f"{number} {level}" for level, number in _count(findings).items())
    return "\n".join([*lines, "", counts]) + "\n"


def _count(findings: Iterable[Finding]) -> dict[str, int]:
    counts = Counter(finding.level for finding in findings)
    return {level.value: counts[level] for level in reversed(Level)}
