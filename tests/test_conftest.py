"""A skip that CI does not allow is a failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
{module}
def test_passes(): pass
@pytest.mark.skip(reason={reason!r})
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""


@pytest.mark.parametrize(
    ("option", "module", "reason", "status"),
    [
        ("--no-skips", "", "no kernel here", 1),
        ("--no-skips", "", "FreeBSD only: jails", 0),
        ("--no-skips", "pytest.importorskip('no_such_module')", "", 2),
        ("-q", "", "no kernel here", 0),
    ],
)
def test_no_skips(tmp_path: Path, option: str, module: str, reason: str, status: int) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS.format(module=module, reason=reason))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", option, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout
    if status:
        assert "--no-skips was given" in done.stdout
