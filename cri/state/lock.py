"""One daemon per state directory, and per runtime directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cri.state.errors import StateError


class StateLock:
    """An exclusive flock(2) on `lock` in a directory, held until `release`.

    The kernel gives it back when the daemon ends, however it ends. The file stays and names the pid of its last holder:
    the lock is on the file's inode, so a file removed here could be locked by two daemons at once. The descriptor is
    closed on exec, since what the daemon starts outlives it; a child that is forked without exec must call `release`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, directory: Path) -> Self:
        """Take the lock of a directory that exists. Raises StateError if another process holds it."""
        path = directory / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"cannot open the lock {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StateError(
                f"the directory {directory} is in use by another daemon (pid {holder}); "
                "stop that one, or choose another state_dir and runtime_dir"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StateError(f"cannot lock {path}: {error.strerror}") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock back; succeeds if that has been done."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
