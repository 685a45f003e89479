"""Going down and up a tree with one descriptor, however deep it is."""

import contextlib
import errno
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_NAMES_AT_ONCE = 3  # of 255 bytes each: FreeBSD takes paths of 1023
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK})


class Descent:
    """A place in a tree, `fd` open for reading there. Use as a context manager. Raises OSError.

    For trees that nobody else changes: the way up is `..`, which leads elsewhere once a directory was moved.
    """

    def __init__(self, fd: int) -> None:
        """Start at the open directory `fd`, which stays the caller's."""
        self.fd = os.open(b".", DIRECTORY, dir_fd=fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def down(self, name: str | bytes) -> None:
        """Enter a directory. No link is followed."""
        below = os.open(name, DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = below

    def up(self) -> int:
        """Leave a directory; its descriptor, which is the caller's to close."""
        left, self.fd = self.fd, os.open(b"..", DIRECTORY, dir_fd=self.fd)
        return left


@contextlib.contextmanager
def kept_times(fd: int) -> Iterator[None]:
    """Give an open directory the times back that it has now: names are made or removed in it meanwhile. Raises OSError."""
    found = os.fstat(fd)
    yield
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def walk(fd: int, *, one_filesystem: bool = False) -> Iterator[tuple[int, list[os.DirEntry[str]]]]:
    """All directories from an open one down, each open for as long as it is looked at, with its files that are none.

    Directories that vanish meanwhile are passed over, and with `one_filesystem` what is mounted below. If one is moved while
    the walk is below it, the walk ends. Raises OSError.
    """
    device = os.fstat(fd).st_dev
    with Descent(fd) as place:
        levels: list[tuple[tuple[int, int], list[str]]] = []
        entered = True
        while entered or levels:
            if entered:
                identity = _identity(place.fd)
                if one_filesystem and identity[0] != device:
                    levels.append((identity, []))
                else:
                    files, below = _listed(place.fd)
                    levels.append((identity, below))
                    yield place.fd, files
            below = levels[-1][1]
            if below:
                entered = _entered(place, below.pop())
                continue
            entered = False
            levels.pop()
            if levels:
                os.close(place.up())
                if _identity(place.fd) != levels[-1][0]:
                    return


def open_far(fd: int, path: str) -> int:
    """Open the directory that a path of any length leads to from an open one, for a tree that nobody else changes."""
    names = [name for name in path.split("/") if name]
    with Descent(fd) as place:
        for start in range(0, len(names), _NAMES_AT_ONCE):
            place.down("/".join(names[start : start + _NAMES_AT_ONCE]))
        return os.dup(place.fd)


def _listed(fd: int) -> tuple[list[os.DirEntry[str]], list[str]]:
    files, below = [], []
    with os.scandir(fd) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            else:
                files.append(entry)
    return files, below


def _entered(place: Descent, name: str) -> bool:
    try:
        place.down(name)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY:
            raise
        return False
    return True


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
