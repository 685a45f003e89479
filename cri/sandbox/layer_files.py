"""What a committed layer's directory tells about the layer.

<chain id>/fs           its files
<chain id>/usage.json   what they take on disk
<chain id>/synced       there is this file only if all of the layer was on disk before the directory got its name
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path

from cri.sandbox import small_files, wire
from cri.sandbox.durable import write_file
from cri.sandbox.spec import DiskUsage

FILES, USAGE, SYNCED = "fs", "usage.json", "synced"

_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a layer."""

    usage: DiskUsage | None = None
    """None: to be measured."""
    doubt: str = ""
    """Why it may be incomplete."""


def judge(layer: Path) -> Judgement:
    """Look at a committed layer. Blocks; raises nothing for a damaged one.

    A layer whose usage cannot be read was hit by a power cut if it was not synced before it got its name, as with
    releases before this file was written: then its files are as torn as that one. Otherwise only the figure is lost.
    """
    try:
        for path in (layer, layer / FILES):
            if not stat.S_ISDIR(path.lstat().st_mode):
                return Judgement(doubt=f"{path} is no directory")
    except OSError as error:
        return Judgement(doubt=f"{error.filename}: {error.strerror}")
    try:
        return Judgement(_usage(small_files.read(layer / USAGE, _LIMIT)))
    except (OSError, ValueError, RecursionError) as error:
        try:
            synced = stat.S_ISREG((layer / SYNCED).lstat().st_mode)
        except OSError:
            synced = False
        return (
            Judgement() if synced else Judgement(doubt=f"{USAGE} cannot be read ({error}), so it may be torn")
        )


def seal(begun: Path, usage: DiskUsage) -> None:
    """Complete a layer that is not committed, for the sync that comes next. Blocks. Raises OSError."""
    (begun / USAGE).write_bytes(_encoded(usage))
    (begun / SYNCED).touch()


def write_usage(layer: Path, usage: DiskUsage) -> None:
    """Write down anew what a committed layer takes. Blocks. Raises OSError."""
    write_file(layer / USAGE, _encoded(usage))


def _encoded(usage: DiskUsage) -> bytes:
    return json.dumps(wire.encode(usage)).encode()


def _usage(data: bytes) -> DiskUsage:
    found = json.loads(data)
    numbers = [found.get(name) for name in ("bytes", "inodes")] if isinstance(found, dict) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("it is no usage")
    return DiskUsage(*numbers)
