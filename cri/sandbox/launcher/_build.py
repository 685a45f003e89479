"""Compiles the launcher, beside its source or elsewhere. At install: setup.py; in a checkout: scripts/setup.

On Linux it is a static executable without a C library: small enough for a copy in memory per pod, and with no loader that an
image could bring. On FreeBSD a static one, too: it is executed for each plan, and a loader would take ten times as long.

    python cri/sandbox/launcher/_build.py [TARGET]
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).with_name("launcher.c")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
FLAGS = ("-Os", "-std=gnu11")
LINUX = (
    "-ffreestanding",
    "-fno-stack-protector",  # its canary is the C library's
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",  # memcpy must not become a call of memcpy
    "-fno-pie",
    "-no-pie",
    "-nostdlib",
    "-static",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
)


def command(target: Path, compiler: str | None = None) -> list[str]:
    """How `target` is made."""
    words = shlex.split(compiler or os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    own = LINUX if sys.platform == "linux" else ("-static",)
    return [words[0], *FLAGS, *WARNINGS, *own, "-o", str(target), str(SOURCE)]


def compile_launcher(target: Path) -> None:
    """Make it. Raises CalledProcessError."""
    subprocess.run(command(target), check=True)  # noqa: S603


if __name__ == "__main__":
    compile_launcher(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.with_suffix(""))
