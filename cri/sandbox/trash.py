"""Directories on their way out: out of sight at once, deleted behind the caller, and by the next daemon if this one ends.

<state>/removed/<number>    what was a sandbox's or a container's directory
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from cri.sandbox.durable import make_directory, remove_any
from cri.sandbox.host import HostError
from cri.sandbox.rubbish import Rubbish

log = structlog.get_logger(__name__)

_ID = re.compile(r"[0-9a-f]{64}")


class Trash:
    """What is to be deleted."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made here, while there is room; without it things are deleted where they are. Blocks."""
        self._directory = directory
        # After a power cut nothing of a container runs, so half a directory under its old name does no harm.
        self._rubbish = Rubbish(lambda: None)
        try:
            if aside := make_directory(directory):
                log.error("something else was in the place of what is removed", moved_to=str(aside))
        except OSError as error:
            log.error("removing will take its time", directory=str(directory), error=str(error))

    async def take(self, path: Path) -> None:
        """Take a directory or a file of this file system out of sight; succeeds if it is gone. Raises HostError."""
        doomed = self._directory / secrets.token_hex(8)
        if await asyncio.to_thread(_out_of_sight, path, doomed):
            self._rubbish.put(doomed)

    def sweep(self) -> int:
        """Begin to delete what an earlier daemon has left here; how much that is. Blocks for a moment. Raises OSError."""
        return sum(self._rubbish.put(path) for path in self._directory.iterdir())


def strays(parent: Path, known: Callable[[str], bool], age: float) -> list[Path]:
    """What has an id's name in a directory, is not known, and has not been changed for `age` seconds.

    What has another name (lost+found) was not put there by us. Blocks. Raises OSError.
    """
    old = time.time() - age
    found = []
    for path in parent.iterdir() if parent.is_dir() else ():
        try:
            if _ID.fullmatch(path.name) and not known(path.name) and path.lstat().st_mtime < old:
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
            remove_any(path)
        except OSError as error:
            raise HostError("remove", str(path), error.strerror or str(error), error.errno) from error
        return False
    return True
