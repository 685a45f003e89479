"""The release that was landed last, as it is installed: out of this repository's own history."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

COMMIT = "5eb138e"
"""Whose records tests/state/landed has, too."""
REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("cri", "registratur", "baustelle", "cni_plugins")


def install_landed(directory: Path) -> None:
    """Put that release into a directory, in the place of whatever is there, and compile its bindings."""
    _remove(directory)
    archive = subprocess.run(
        ["git", "archive", COMMIT, *PACKAGES], cwd=REPOSITORY, capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"no history here, git fetch --unshallow gets it: {archive.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(directory, filter="data")
    for build in sorted(directory.glob(f"c*/**/{_system()}/_*_build.py")):
        subprocess.run([sys.executable, build], cwd=directory, check=True, capture_output=True)


def install_this(directory: Path) -> None:
    """Put this checkout into a directory, in the place of whatever is there."""
    _remove(directory)
    for package in PACKAGES:
        shutil.copytree(
            REPOSITORY / package, directory / package, ignore=shutil.ignore_patterns("__pycache__")
        )


def _remove(directory: Path) -> None:
    for package in PACKAGES:
        shutil.rmtree(directory / package, ignore_errors=True)


def _system() -> str:
    return "linux" if sys.platform == "linux" else "freebsd"
