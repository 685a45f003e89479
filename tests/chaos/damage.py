"""What may happen to a file while nobody looks."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

KINDS = ("deleted", "emptied", "cut", "random", "directory", "fifo", "link")


def files(base: Path) -> list[Path]:
    """Every file of a daemon's directories, but for what images and containers have brought themselves."""
    found = []
    for root in (base / "state", base / "run"):
        for directory, below, names in os.walk(root):
            below[:] = [name for name in below if name not in ("fs", "upper", "work", "rootfs", "removed")]
            found += [Path(directory, name) for name in names]
    # Not what earlier damage has put there and nobody has needed since.
    return sorted(path for path in found if not path.is_symlink() and (path.is_file() or path.is_socket()))


def damage(path: Path, kind: str, chance: random.Random) -> None:
    """Do it."""
    if path.is_socket() and kind in ("emptied", "cut", "random"):
        path.unlink()
        path.write_bytes(b"" if kind == "emptied" else chance.randbytes(100))
        return
    size = path.lstat().st_size
    if kind == "emptied":
        os.truncate(path, 0)
    elif kind == "cut":
        os.truncate(path, size // 2)
    elif kind == "random":
        path.write_bytes(chance.randbytes(max(size, 1)))
    else:
        path.unlink()
        if kind == "directory":
            path.mkdir()
            (path / "inside").write_text("content")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/nowhere/at/all")


def clear(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
