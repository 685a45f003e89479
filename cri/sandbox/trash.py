"""Directories on their way out: out of sight at once, deleted behind the caller, and by the next daemon if this one ends.

<state>/removed/<number>    what was a sandbox's or a container's directory
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from baustelle.removal import remove_tree
from cri.sandbox.host import HostError

log = structlog.get_logger(__name__)

_WORKERS = 2
"""Threads that delete: enough to keep up, too few to slow the rest down."""


class Trash:
    """What is to be deleted."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made here, while there is room. Blocks. Raises OSError."""
        self._directory = directory
        self._doomed: queue.SimpleQueue[Path] = queue.SimpleQueue()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(_WORKERS):
            # The daemon's end does not wait for them: what is left is the next one's.
            threading.Thread(target=self._work, name=f"trash-{number}", daemon=True).start()

    async def take(self, path: Path) -> None:
        """Take a directory or a file of this file system out of sight; succeeds if it is gone. Raises HostError."""
        doomed = self._directory / secrets.token_hex(8)
        if await asyncio.to_thread(_out_of_sight, path, doomed):
            self._doomed.put(doomed)

    def sweep(self) -> int:
        """Begin to delete what an earlier daemon has left here; how much that is. Blocks for a moment. Raises OSError."""
        left = list(self._directory.iterdir())
        for path in left:
            self._doomed.put(path)
        return len(left)

    def _work(self) -> None:
        while True:
            path = self._doomed.get()
            try:
                _remove(path)
            except OSError as error:
                log.warning(
                    "something removed takes room until the next start", path=str(path), error=str(error)
                )


def strays(parent: Path, known: Callable[[str], bool], age: float) -> list[Path]:
    """What lies in a directory that is not known, and has not been changed for `age` seconds. Blocks. Raises OSError."""
    old = time.time() - age
    found = []
    for path in parent.iterdir() if parent.is_dir() else ():
        try:
            if not known(path.name) and path.lstat().st_mtime < old:
                found.append(path)
        except FileNotFoundError:
            continue
    return found


def _out_of_sight(path: Path, doomed: Path) -> bool:
    """Whether it is at its new place now; else it is gone. Raises HostError."""
    try:
        path.rename(doomed)
    except OSError:  # it is gone; or there is no room for another name, and to delete takes none
        try:
            _remove(path)
        except OSError as error:
            raise HostError("remove", str(path), error.strerror or str(error), error.errno) from error
        return False
    return True


def _remove(path: Path) -> None:
    try:
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if is_directory:
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
