"""What the FreeBSD bindings rely on, against FreeBSD's headers, on whatever machine the tests run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NEGATED = "-D_Static_assert(condition, text)=_Static_assert(!(condition), text)"

pytestmark = pytest.mark.skipif(
    sys.platform.startswith("freebsd"), reason="Linux only: on FreeBSD the bindings are compiled anyway"
)


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/check-freebsd-abi", *arguments],
        env=os.environ | {"VENV": sys.prefix},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def asserts() -> dict[tuple[str, str], int]:
    """How many asserts hold, by binding and architecture."""
    done = check()
    assert done.returncode == 0, done.stderr
    told = re.findall(r": (\S+_build\.py): (\w+): (\d+) asserts hold", done.stdout)
    launchers = re.findall(r": launcher: (\w+): compiles", done.stdout)
    assert launchers == ["x86_64", "aarch64"]
    assert len(told) + len(launchers) == len(done.stdout.splitlines())
    return {(build, arch): int(count) for build, arch, count in told}


def test_the_bindings_compile_and_all_asserts_hold(asserts):
    builds = {str(path.relative_to(ROOT)) for path in ROOT.glob("cri/sandbox/freebsd/_*_build.py")}
    assert "cri/sandbox/freebsd/_kernel_build.py" in builds
    assert set(asserts) >= {(build, arch) for build in builds for arch in ("x86_64", "aarch64")}
    assert all(count > 10 for count in asserts.values())


def test_every_assert_can_fail(asserts):
    """Turned round, all of them do."""
    done = check(NEGATED, "-ferror-limit=0")
    assert done.returncode != 0
    failed = re.findall(r": (\S+): (\w+): FAILED", done.stdout)
    assert {*failed} == {*asserts, ("launcher", "x86_64"), ("launcher", "aarch64")}
    # (The headers have some of their own.)
    ours = re.findall(r"binding\.c:\d+:\d+: error: static assertion failed", done.stderr)
    assert len(ours) == sum(asserts.values())
