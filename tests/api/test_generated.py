"""What is committed is what the proto makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def generate_api():
    """Runs the script with the environment that runs the tests."""
    if not (Path(sys.prefix) / "bin" / "protoc-gen-python_betterproto2").exists():
        pytest.skip("Linux only: the generator is not installed on FreeBSD")

    def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [root / "scripts" / "generate-api", *arguments],
            env={**os.environ, "VENV": sys.prefix},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_regeneration_changes_nothing(generate_api) -> None:
    done = generate_api(ROOT, "--check")
    assert done.returncode == 0, done.stderr


def test_a_changed_proto_is_noticed_and_written(generate_api, tmp_path: Path) -> None:
    script, proto = tmp_path / "scripts/generate-api", tmp_path / "cri/api/proto/api.proto"
    for file in (script, proto):
        file.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "scripts/generate-api").read_bytes())
    script.chmod(0o755)
    proto.write_text('syntax = "proto3"; package runtime.v1; message Extra { string name = 1; }')
    assert generate_api(tmp_path, "--check").returncode == 1
    assert not (tmp_path / "cri/api/runtime").exists()
    assert generate_api(tmp_path).returncode == 0
    assert "class Extra(" in (tmp_path / "cri/api/runtime/v1/__init__.py").read_text()
    assert generate_api(tmp_path, "--check").returncode == 0
