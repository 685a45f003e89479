"""One daemon per state directory, and per runtime directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from cri.state.errors import StateError

log = structlog.get_logger(__name__)

_UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems say that cannot lock a directory."""


class StateLock:
    """Exclusive flock(2)s on a directory and on the file `lock` in it, held until `release`.

    The kernel gives them back when the daemon ends, however it ends. The directory's is the one that counts: it needs
    nothing that could be missing, of another type, or not writable. The file names the pid of its last holder, keeps
    daemons of earlier releases out, and locks alone where a file system cannot lock directories; so it stays, as the lock
    is on its inode. The descriptors are closed on exec, since what the daemon starts outlives it; a child that is forked
    without exec must call `release`.
    """

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    @classmethod
    def acquire(cls, directory: Path) -> Self:
        """Take the lock of a directory that exists. Raises StateError if another process holds it."""
        path = directory / "lock"
        with contextlib.ExitStack() as undo:
            held: list[int] = []
            try:
                own = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise StateError(f"cannot open the lock {path}: {error.strerror}") from error
            undo.callback(os.close, own)
            if _lock(own, path):
                held.append(own)
            file = _open_file(path, sole=bool(held))
            if file is not None:
                undo.callback(os.close, file)
                if _lock(file, path):
                    held.append(file)
            if not held:
                raise StateError(
                    f"cannot lock {path}: its file system has no locks, or it cannot be written; "
                    "choose a state_dir and runtime_dir on a local file system"
                )
            if file is not None:
                _sign(file, path)
            undo.pop_all()
            return cls([own] if file is None else [own, file])

    def release(self) -> None:
        """Give the lock back; succeeds if that has been done."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _lock(descriptor: int, path: Path) -> bool:
    """Whether the lock is held now; not, if its file system has none. Raises StateError if another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateError(
            f"the directory {path.parent} is in use by another daemon (pid {_holder(path)}); "
            "stop that one, or choose another state_dir and runtime_dir"
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise StateError(f"cannot lock {path}: {error.strerror}") from error
        return False
    return True


def _open_file(path: Path, *, sole: bool) -> int | None:
    """The lock file, opened or made; None if that cannot be, which is no harm for whoever has the directory's lock."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if sole:
            _clear(path)
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        log.warning("the lock file cannot be used", file=str(path), reason=error.strerror)
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


def _clear(path: Path) -> None:
    """Put aside what is no file: nobody else can have locked it who is not locked out by the directory."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            aside = path.with_name(time.strftime(f"{path.name}.damaged-%Y%m%dT%H%M%SZ", time.gmtime()))
            path.rename(aside)
            log.error("put aside what lay in the lock file's place", put_aside=str(aside))


def _holder(path: Path) -> str:
    """The pid that the lock file names."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "unknown"
    try:
        found = os.read(descriptor, 32).decode("ascii", "replace").strip()
    except OSError:
        found = ""
    finally:
        os.close(descriptor)
    return found if found.isdecimal() else "unknown"


def _sign(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError as error:
        log.warning("the lock file does not name the daemon", file=str(path), reason=error.strerror)
