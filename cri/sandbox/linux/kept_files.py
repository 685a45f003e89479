"""Small files of the kernel's that are read again and again, kept open as far as the process may have them open.

To read one that is open takes a third of the time: no path is looked up, and nothing is made and freed for it.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 4
"""At most this part of what the process may open is kept open."""
SPARED = 64
"""What is not taken of that share: the reserve for removals has as many."""
MOST = 8192
"""Kept open at most, those of some 300 groups: the kernel holds a page for each, which is 32 MiB."""

_BLOCK = 4096
_ABSENT = -1
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EOPNOTSUPP)
"""The last one is what a kernel says that was started without PSI."""

Read = Callable[[str], bytes | None]


def most_kept() -> int:
    """How many files may be kept open, by what this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(0, min(MOST, soft // SHARE - SPARED))


class KeptFiles:
    """Files, by who they are about. Safe for threads; nothing that is done here waits for anything but the kernel."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._open: dict[str, dict[str, int]] = {}
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def of(self, owner: str) -> Iterator[Read]:
        """What reads the files that are about somebody; None is a file that is not there. Raises OSError."""
        with self._lock:
            if self._most is None:
                # Asked late: the daemon raises its limit when its spawner has been started.
                self._most = most_kept()
            files = self._open.setdefault(owner, {})
            yield lambda path: self._read(files, path)

    def forget(self, owner: str) -> None:
        """Close what is open about somebody."""
        with self._lock:
            self._close(owner)

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            for owner in list(self._open):
                self._close(owner)

    def __len__(self) -> int:
        """How many files are open."""
        return self._count

    def _read(self, files: dict[str, int], path: str) -> bytes | None:
        kept = files.get(path)
        if kept == _ABSENT:
            return None
        try:
            if kept is not None:
                return _content(kept)
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            if kept is None:
                files[path] = _ABSENT
            return None
        assert self._most is not None
        if self._count < self._most:
            files[path] = opened
            self._count += 1
            return _content(opened)
        try:
            return _content(opened)
        finally:
            os.close(opened)

    def _close(self, owner: str) -> None:
        for fd in self._open.pop(owner, {}).values():
            if fd != _ABSENT:
                os.close(fd)
                self._count -= 1


def _content(fd: int) -> bytes:
    found = os.pread(fd, _BLOCK, 0)
    size = len(found)
    while size and size % _BLOCK == 0:
        more = os.pread(fd, _BLOCK, size)
        if not more:
            break
        found += more
        size += len(more)
    return found
