"""Files that must survive a power cut, and how to look at those that may not have.

POSIX leaves it open when a file's bytes, its name in a directory, or a rename reach the disk, until fsync(2) of the file
and of the directory. Everything here blocks but `SharedSync`.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

from baustelle import descent
from baustelle.removal import remove_tree
from cri.sandbox import small_files
from cri.sandbox.small_files import sync_directory

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def write_file(path: Path, data: bytes) -> None:
    """Put a file in place of whatever is there, a directory too: after a power cut it is the old or the new one, whole.

    Raises OSError.
    """
    if _is_directory(path):
        remove_tree(path)
    small_files.write(path, data, sync=True)


def make_directory(path: Path) -> Path | None:
    """See to it that there is a directory, for its owner only, whose name is on disk.

    What else is in its place is renamed aside, never deleted: where to, is returned. A link to a directory is one: an
    operator may keep it elsewhere. Raises OSError.
    """
    if path.is_dir():
        return None
    aside = None
    if os.path.lexists(path):
        aside = free_name(path)
        path.rename(aside)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_directory(path.parent)
    return aside


def free_name(path: Path) -> Path:
    """A name beside `path` for what is put aside."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return aside


def remove_any(path: Path) -> None:
    """Remove whatever is there, a tree or a file of any kind; succeeds if there is nothing. Raises OSError."""
    if _is_directory(path):
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def sync_tree(path: str | Path, check: Callable[[], None] = lambda: None) -> None:
    """Bring every file and directory of a tree to disk, each by itself: the way of systems without syncfs(2).

    What is neither, a link, say, is in its directory. `check` is called before each file, to raise what shall end this
    half-way. Raises OSError.
    """
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder, files in descent.walk(top):
            for entry in files:
                check()
                if entry.is_file(follow_symlinks=False):
                    _sync_file(entry.name, folder)
            os.fsync(folder)
    finally:
        os.close(top)


def _sync_file(name: str, folder: int) -> None:
    fd = os.open(name, _FILE, dir_fd=folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SharedSync:
    """A blocking sync, whose callers share: whoever comes while one runs is served by the next, together."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Return when everything that was written before this call is on disk. Raises what the sync raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._running))
        await asyncio.shield(self._next)

    async def _run(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._sync)


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False
