"""Trees on their way out: renamed aside first, deleted behind whoever wanted them gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from cri.sandbox.durable import remove_any

log = structlog.get_logger(__name__)


class Rubbish:
    """Deletes what was renamed aside, one tree after the other, in a thread that lives as long as there are any.

    What is not deleted when the daemon ends must be told by its name, and handed in again by the next one.
    """

    def __init__(self, sync: Callable[[], None], deleted: Callable[[], object] = lambda: None) -> None:
        """`sync` brings the renames to disk; before that, nothing is deleted. `deleted` is called after each tree.

        A power cut that undid a rename, but not the deletions, would leave half a tree under its old name.
        """
        self._sync = sync
        self._deleted = deleted
        self._changing = threading.Condition()
        self._waiting: list[Path] = []
        self._doomed: set[Path] = set()
        self._working = False

    def put(self, path: Path) -> bool:
        """Have a tree, or a file of any kind, deleted; returns at once: whether it is news. From any thread."""
        with self._changing:
            if path in self._doomed:
                return False
            self._doomed.add(path)
            self._waiting.append(path)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="rubbish", daemon=True).start()
        return True

    def wait(self, patience: float | None = None) -> None:
        """Wait until all is deleted that was put in; not longer than `patience` seconds. Blocks."""
        with self._changing:
            self._changing.wait_for(lambda: not self._working, patience)

    def _work(self) -> None:
        while paths := self._take():
            try:
                self._sync()
            except OSError as error:
                log.warning("not deleted; the next start tries again", paths=_text(paths), error=str(error))
            else:
                for path in paths:
                    self._delete(path)
            with self._changing:
                self._doomed.difference_update(paths)

    def _take(self) -> list[Path]:
        with self._changing:
            paths, self._waiting = self._waiting, []
            if not paths:
                self._working = False
                self._changing.notify_all()
        return paths

    def _delete(self, path: Path) -> None:
        try:
            remove_any(path)
        except (OSError, RecursionError) as error:
            log.warning("not deleted; the next start tries again", paths=_text([path]), error=str(error))
        else:
            self._deleted()


def _text(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]
