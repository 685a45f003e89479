"""crictl, critest and streamclient, built by critest-config/build-tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nodekit import places
from nodekit.processes import CommandError

_PINNED = b"sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"
"""The published image that a spec pulls by its digest (cri-tools, pkg/validate/consts.go)."""


def pin(critest: Path, digest: str, to: Path) -> Path:
    """Return a copy of CRITEST below TO that pulls the image of that DIGEST where it pins a published one.

    No image made of other parts can have the published one's digest; the spec is the same with ours.

    Raises:
        CommandError: if it pins another image, which a new release may do.

    """
    program = critest.read_bytes()
    if _PINNED not in program:
        raise CommandError(
            f"{critest} pins another image than {_PINNED.decode()}: see pkg/validate/consts.go"
        )
    if len(digest) != len(_PINNED):
        raise CommandError(f"{digest} cannot stand in the place of {_PINNED.decode()}")
    copy = to / "critest"
    copy.write_bytes(program.replace(_PINNED, digest.encode()))
    copy.chmod(0o755)
    return copy


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
