"""docs/inherited.md, as tests read it."""

from __future__ import annotations

import re
import subprocess
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


def compile_program(directory: Path, source: str, *flags: str) -> Path:
    """A program of this directory, without shared libraries: for any tree."""
    program = directory / Path(source).stem
    subprocess.run(
        ["cc", "-static", "-O1", "-Wall", "-Werror", *flags, "-o", program, HERE / source], check=True
    )
    return program


def printed(*command: str | Path) -> dict[str, str]:
    """What a program of this directory reads."""
    return readings(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def stated(system: str, node: dict[str, str], *, may_raise: bool) -> dict[str, str]:
    """What every process of a container reads, as far as that does not depend on what was asked for.

    `node` is what a process of the node reads. What its kernel has not, nobody gets; and hard limits only fall for who may not raise them.
    """
    expected = {name: row.value for name, row in rows(system).items() if row.value is not None}
    if system == "Linux":
        threads = int(Path("/proc/sys/kernel/threads-max").read_text()) // 2
        expected |= dict.fromkeys(("limit NPROC", "limit SIGPENDING"), f"{threads} {threads}")
    if not may_raise:
        for name in expected:
            if name.startswith("limit "):
                expected[name] = _lowered(expected[name], int(node[name].split()[1]))
    return expected | {name: "-" for name, value in node.items() if value == "-"}


def _lowered(value: str, most: int) -> str:
    """A soft and a hard limit, none above `most`; -1 is infinity."""
    numbers = [int(number) for number in value.split()]
    return " ".join(
        str(number if most == -1 else most if number == -1 else min(number, most)) for number in numbers
    )
