"""Arrows that import-linter cannot draw: what runs as a spawner or warden has the standard library and the kernel only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINUX = sys.platform == "linux"
WARDEN = ROOT / "cri" / "sandbox" / "warden"
LAUNCHER = ROOT / "cri" / "sandbox" / "launcher"
ALLOWED = (
    "cri.sandbox.warden.",
    "cri.sandbox.launcher.",
    *(f"cri.sandbox.{name}" for name in ("host.", "spec.", "wire", "small_files")),
)
"""Our own modules that a warden may import; each is checked by the same rules. A driver hands it the kernel.

The names that are imported from a module are part of what is compared, so all but a package's modules end in a dot.
"""


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it, but not those for the type checker alone."""
    tree = ast.parse(file.read_text(), str(file))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for one in node.body
        for inner in ast.walk(one)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files() -> list[Path]:
    return [
        *sorted(WARDEN.rglob("*.py")),
        *(ROOT / f"cri/sandbox/{name}.py" for name in ("host", "spec", "wire", "small_files")),
    ]


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_warden_imports_the_standard_library_only(file: Path) -> None:
    in_daemon = file.stem in ("client", "handles", "network", "silence", "wardens")
    for name in imported(file):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or name.startswith(ALLOWED)
        assert known or (in_daemon and top == "structlog"), f"{file.relative_to(ROOT)} imports {name}"
        assert in_daemon or top != "asyncio", f"{file.relative_to(ROOT)} imports asyncio"


@pytest.mark.parametrize("file", sorted(LAUNCHER.glob("*.py")), ids=lambda file: file.name)
def test_who_speaks_to_a_launcher_knows_nothing_else_of_ours(file: Path) -> None:
    for name in imported(file):
        known = name.partition(".")[0] in sys.stdlib_module_names or name.startswith("cri.sandbox.launcher.")
        assert known, f"{file.relative_to(ROOT)} imports {name}"


def loaded_by(*modules: str) -> set[str]:
    """The packages that a new process has after it has imported some modules."""
    program = (
        f"import sys; import {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_opentelemetry_is_imported_where_a_collector_is_configured_only() -> None:
    assert "opentelemetry" not in loaded_by("cri.cli", "cri.server", "cri.monitoring.server")


def test_what_only_a_pull_needs_is_not_imported_before() -> None:
    loaded = loaded_by(
        "cri.cli", "cri.log", "cri.server", "cri.sandbox.linux.host" if LINUX else "cri.sandbox.host"
    )
    assert "sqlmodel" in loaded  # else this says nothing
    assert "aiohttp" not in loaded


def test_who_lists_images_needs_no_registry_s_client_and_nothing_of_the_daemon() -> None:
    loaded = loaded_by(
        "cri.commands.image.daemon", "cri.commands.image.listing", "cri.commands.image.removal"
    )
    assert "grpc" in loaded  # else this says nothing
    assert not loaded & {"registratur", "aiohttp", "sqlmodel", "structlog", "websockets"}
