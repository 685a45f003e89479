"""Directories on their way out: out of sight at once, deleted behind the caller, and by the next daemon if this one ends.

<state>/removed/<name>.<number>     what was a sandbox's or a container's directory, whose name was its id

What is there has been removed, whatever else is said of it: `names` tells, until it is deleted.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from cri.sandbox.durable import make_directory, remove_any
from cri.sandbox.host import HostError
from cri.sandbox.rubbish import Rubbish

log = structlog.get_logger(__name__)

PAUSE = 0.1
"""Seconds until what was taken out of sight begins to be deleted: whoever wanted it gone has its answer by then."""

_ID = re.compile(r"[0-9a-f]{64}")


class Trash:
    """What is to be deleted."""

    def __init__(self, directory: Path, deleted: Callable[[], object] = lambda: None) -> None:
        """`directory` is made here, while there is room; without it things are deleted where they are. Blocks.

        `deleted` is called, in a thread, after something is gone that was out of sight.
        """
        self._directory = directory
        # After a power cut nothing of a container runs, so half a directory under its old name does no harm.
        self._rubbish = Rubbish(lambda: None, deleted)
        try:
            if aside := make_directory(directory):
                log.error("something else was in the place of what is removed", moved_to=str(aside))
        except OSError as error:
            log.error("removing will take its time", directory=str(directory), error=str(error))

    async def take(self, path: Path) -> None:
        """Take a directory or a file of this file system out of sight; succeeds if it is gone. Raises HostError."""
        if (doomed := await asyncio.to_thread(self.out_of_sight, path)) is not None:
            self.delete(doomed)

    def out_of_sight(self, path: Path) -> Path | None:
        """As `take`, but where it is now is returned, for `delete`; None if it is gone. Blocks. Raises HostError."""
        doomed = self._directory / f"{path.name}.{secrets.token_hex(4)}"
        return doomed if _out_of_sight(path, doomed) else None

    def delete(self, doomed: Path) -> None:
        """Delete what was taken out of sight, after a moment; returns at once. On the event loop."""
        asyncio.get_running_loop().call_later(PAUSE, self._rubbish.put, doomed)

    def names(self) -> set[str]:
        """What names all that is out of sight had, whether or not anything was left of it. Blocks. Raises OSError."""
        return {_former_name(path) for path in self._directory.iterdir()}

    def sweep(self, spared: Collection[str] = ()) -> int:
        """Begin to delete what an earlier daemon has left here; how much that is. Blocks for a moment. Raises OSError.

        What has had a name of `spared` stays.
        """
        found = [path for path in self._directory.iterdir() if _former_name(path) not in spared]
        return sum(self._rubbish.put(path) for path in found)


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


def _former_name(path: Path) -> str:
    return path.name.rpartition(".")[0]


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
