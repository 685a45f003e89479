"""What people and programs get to see."""

from __future__ import annotations

import json
import re

import pytest

from cri.doctor import Level, exit_status, render_json, render_table
from cri.doctor.finding import failure, note, ok, warning

FINDINGS = [
    ok("root", "running as root"),
    note("zfs", "on ufs"),
    warning("racct", "racct is off: " + "limits are neither enforced nor measured " * 4, "echo " + "x" * 200),
    failure("pf", "not loaded", "service pf start"),
]


@pytest.mark.parametrize(
    ("findings", "lenient", "strict"),
    [([], 0, 0), (FINDINGS[:2], 0, 0), (FINDINGS[:3], 0, 1), (FINDINGS, 1, 1), (FINDINGS[3:], 1, 1)],
)
def test_exit_status(findings, lenient, strict) -> None:
    assert exit_status(findings) == lenient
    assert exit_status(findings, strict=True) == strict


def test_json() -> None:
    contents = json.loads(render_json(FINDINGS))
    assert contents["summary"] == {"failure": 1, "warning": 1, "note": 1, "ok": 1}
    assert contents["findings"][3] == {
        "name": "pf",
        "level": "failure",
        "message": "not loaded",
        "remedy": "service pf start",
    }


@pytest.mark.parametrize("width", [None, 80, 20])
def test_table(width) -> None:
    table = render_table(FINDINGS, width=width)
    rows = table.splitlines()
    assert rows[0] == "ok       root   running as root"
    assert "                -> echo " + "x" * 200 in rows, "a remedy is never broken"
    assert rows[-1] == "1 failure, 1 warning, 1 note, 1 ok"
    assert "\x1b" not in table
    limit = max(width or 110, 46)
    assert all(len(row) <= limit for row in rows if "->" not in row)


def test_colour_changes_nothing_but_colour() -> None:
    coloured = render_table(FINDINGS, colour=True)
    assert len(re.findall(r"\x1b\[[0-9;]+m", coloured)) == 2 * len(FINDINGS)
    assert re.sub(r"\x1b\[[0-9;]+m", "", coloured) == render_table(FINDINGS)


def test_no_findings() -> None:
    assert render_table([]) == "\n0 failure, 0 warning, 0 note, 0 ok\n"


def test_levels_are_as_documented() -> None:
    assert [level.value for level in Level] == ["ok", "note", "warning", "failure"]
