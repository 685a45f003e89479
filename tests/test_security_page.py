"""SECURITY.md: every row has a test, and there is none about a test that is not there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = (
    "What an image can try",
    "What a registry can try",
    "What a client of the socket, or a pod's author, can try",
    "What a client of the streaming port or of the pages can try",
    "What a container can try",
    "Linux",
    "FreeBSD",
    "Files",
    "Secrets",
)
"""Those whose rows have tests: all with a table, but who is trusted and what was read."""

WITHOUT = ("Trust", "Sources")
SOURCE = re.compile(r"\[([a-z]\d+)\]")


def rows(chapter: str) -> list[tuple[str, ...]]:
    """The table of a chapter, without its head."""
    text = (ROOT / "SECURITY.md").read_text().split(f"\n## {chapter}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = [tuple(line.removeprefix("| ").removesuffix(" |").split(" | ")) for line in lines]
    assert {len(row) for row in found[2:]} == {len(found[0])}, chapter
    return found[2:]


ROWS = [(chapter, *row) for chapter in CHAPTERS for row in rows(chapter)]


def test_no_chapter_is_left_out() -> None:
    chapters = re.findall(r"^## (.+)$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert sorted(chapters) == sorted((*CHAPTERS, *WITHOUT))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_row_has_a_test(row) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", row[-1])
    assert len(tests) == row[-1].count("`tests/") > 0, row[-1]
    for file, name in tests:
        tree = ast.parse((ROOT / file).read_text())
        found = [
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert name in found, f"{file} has no {name}"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: FreeBSD's are collected there")
def test_they_are_collected() -> None:
    named = {test for _, *_, text in ROWS for test in re.findall(r"`(tests/[\w/]+\.py::[\w:]+)`", text)}
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
