"""crictl, critest and streamclient, built by critest-config/build-tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nodekit import places
from nodekit.processes import CommandError


def build(*tools: str) -> Path:
    """Return the directory with TOOLS (of crictl, critest, streamclient), building those that are missing.

    Raises:
        CommandError: if the build fails; what it printed stands on standard error.

    """
    argv: list[str | Path] = [places.CONFIG / "build-tools", *tools]
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise CommandError(f"building {' and '.join(tools)} failed with {done.returncode}; see above")
    return Path(done.stdout.strip())
