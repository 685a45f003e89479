"""SECURITY.md: every row has a test, and there is no row about a test that is not there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (.+) \| (.+) \| (.+) \| (.+) \|$")
SOURCE = re.compile(r"\[([a-z]\d+)\]")


def rows(system: str) -> list[tuple[str, ...]]:
    """The table of a chapter, without its head."""
    chapter = (ROOT / "SECURITY.md").read_text().split(f"\n## {system}\n")[1].split("\n## ")[0]
    return [match.groups() for line in chapter.splitlines() if (match := ROW.match(line))][1:]


ROWS = [(system, *row) for system in ("Linux", "FreeBSD") for row in rows(system)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_row_has_a_test(row) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
    assert tests, row[-1]
    for file, name in tests:
        tree = ast.parse((ROOT / file).read_text())
        found = [
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert name in found, f"{file} has no {name}"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: FreeBSD's are collected there")
def test_they_are_collected() -> None:
    named = {test for _, *_, text in ROWS for test in re.findall(r"`(tests/[\w/]+\.py::\w+)`", text)}
    ours = sorted(test for test in named if not test.startswith("tests/freebsd/"))
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *ours],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-3000:]


def test_every_source_is_told_and_used() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    tables, sources = text.split("\n## Sources\n")
    assert set(SOURCE.findall(tables)) == set(re.findall(r"^\| ([a-z]\d+) \|", sources, re.MULTILINE))
