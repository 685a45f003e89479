"""Room on the disk, kept for removals: to remove something, its removal is first written down."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

MIB = 1024 * 1024
SIZE = 8 * MIB
ROOM = 4
"""So many times the reserve must be free before it is taken, so that taking it does not fill the disk again."""
LEAST = 64 * 1024
"""Bytes; a reserve below this is none."""
_BLOCK = 512
"""What `st_blocks` counts in."""
_CHUNK = MIB


class DiskReserve:
    """A file of some MiB that is really there, and can be given up at any time. Safe for threads; its calls block.

    The file is held open, so that giving it up needs no descriptor, and it is emptied rather than removed: a full file
    system that copies on write may refuse to remove a file.
    """

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self._path = path
        self._size = size
        self._descriptor: int | None = None
        self._held = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> bool:
        """Whether there is none: it was given up, or there was no room to take it."""
        return self._held < LEAST

    def take(self) -> bool:
        """Take it if it is not held and there is room several times its size; whether it is held now.

        What an earlier daemon has left of it is taken over, however full the disk is. Never raises for the disk.
        """
        with self._lock:
            if self._descriptor is not None and not self._is_ours(self._descriptor):
                os.close(self._descriptor)
                self._descriptor, self._held = None, 0
            if self.spent:
                try:
                    self._take()
                except OSError as error:
                    log.debug("no reserve of disk", file=str(self._path), reason=error.strerror)
            return not self.spent

    def give_up(self) -> bool:
        """Free its room for what must be written now; whether there was any."""
        with self._lock:
            if self._held == 0 or self._descriptor is None:
                return False
            try:
                os.ftruncate(self._descriptor, 0)
            except OSError as error:
                log.warning(
                    "the reserve of disk cannot be given up", file=str(self._path), reason=error.strerror
                )
                return False
            freed, self._held = self._held, 0
        log.warning(
            "the disk is full; the reserve is given up so that things can be removed",
            file=str(self._path),
            bytes=freed,
            remedy="remove images, pods or logs; the reserve is taken again when there is room",
        )
        return True

    def close(self) -> None:
        """Let go of the file, which stays; `take` takes it over again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._held = 0

    def _take(self) -> None:
        if self._descriptor is None:
            self._descriptor = self._open()
        there = _allocated(self._descriptor)
        if there >= self._size:
            self._held = there
            return
        disk = os.fstatvfs(self._descriptor)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        # A small disk gives a small one.
        wanted = min(self._size, (free + there) // ROOM)
        if wanted < LEAST or free + there < min(ROOM * self._size, total // ROOM):
            self._held = there if there >= LEAST else 0
            return
        try:
            _allocate(self._descriptor, wanted)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            raise
        self._held = wanted

    def _is_ours(self, descriptor: int) -> bool:
        """Whether the file that is held open is the one at its path: it may have been removed, or its disk replaced."""
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def _open(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            mode = self._path.lstat().st_mode
            if stat.S_ISDIR(mode):
                self._path.rename(self._path.with_name(f"{self._path.name}.damaged-{os.getpid()}"))
            elif not stat.S_ISREG(mode):
                self._path.unlink()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(self._path, flags, 0o600)


def _allocated(descriptor: int) -> int:
    """Bytes on the disk that would be free without the file."""
    found = os.fstat(descriptor)
    return min(found.st_size, found.st_blocks * _BLOCK)


def _allocate(descriptor: int, size: int) -> None:
    """Make a file take so much of the disk. Raises OSError."""
    os.ftruncate(descriptor, size)
    with contextlib.suppress(OSError):  # ZFS has no such call; and what is written says whether there is room
        os.posix_fallocate(descriptor, 0, size)
    if _allocated(descriptor) >= size:
        return
    # Random: zeros cost nothing where the file system compresses, and would free nothing.
    for offset in range(0, size, _CHUNK):
        content = os.urandom(min(_CHUNK, size - offset))
        while content:
            written = os.pwrite(descriptor, content, offset)
            content, offset = content[written:], offset + written  # noqa: PLW2901 - a short write goes on behind itself
    os.fsync(descriptor)
