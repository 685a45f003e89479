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
    for name in ("scripts/generate-api", "cri/api/proto/api.proto", "cri/api/proto/api.desc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        (tmp_path / name).chmod(0o755)
    proto = tmp_path / "cri/api/proto/api.proto"
    proto.write_text(proto.read_text() + "\nmessage Extra { string name = 1; }\n")
    assert generate_api(tmp_path, "--check").returncode == 1
    assert not (tmp_path / "cri/api/runtime").exists()
    assert generate_api(tmp_path).returncode == 0
    assert "class Extra(" in (tmp_path / "cri/api/runtime/v1/__init__.py").read_text()
    assert generate_api(tmp_path, "--check").returncode == 0
