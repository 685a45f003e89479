"""Trees on their way out: renamed aside first, deleted behind whoever wanted them gone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from cri.sandbox.durable import remove_any

log = structlog.get_logger(__name__)


class Rubbish:
    """Deletes what was renamed aside, one tree after the other, in a thread of its own.

    What is not deleted when the daemon ends must be told by its name, and handed in again by the next one.
    """

    def __init__(self, sync: Callable[[], None]) -> None:
        """`sync` brings the renames to disk; before that, nothing is deleted.

        A power cut that undid a rename, but not the deletions, would leave half a tree under its old name.
        """
        self._sync = sync
        self._queue: queue.Queue[Path] = queue.Queue()
        self._adding = threading.Lock()
        self._known: set[Path] = set()
        self._thread: threading.Thread | None = None

    def put(self, path: Path) -> bool:
        """Have a tree, or a file of any kind, deleted; returns at once: whether it is news. From any thread."""
        with self._adding:
            if path in self._known:
                return False
            self._known.add(path)
            self._queue.put(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rubbish", daemon=True)
                self._thread.start()
        return True

    def wait(self) -> None:
        """Wait until all is deleted that was put in. Blocks."""
        self._queue.join()

    def _work(self) -> None:
        while True:
            paths = [self._queue.get()]
            while not self._queue.empty():
                paths.append(self._queue.get())
            try:
                self._sync()
            except OSError as error:
                log.warning("not deleted; the next start tries again", paths=_text(paths), error=str(error))
            else:
                for path in paths:
                    self._delete(path)
            for path in paths:
                with self._adding:
                    self._known.discard(path)
                self._queue.task_done()

    def _delete(self, path: Path) -> None:
        try:
            remove_any(path)
        except OSError as error:
            log.warning("not deleted; the next start tries again", paths=_text([path]), error=str(error))


def _text(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]
