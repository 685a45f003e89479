"""Going down and up a tree with one descriptor, however deep it is."""

import os
from types import TracebackType
from typing import Self

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Descent:
    """A place in a tree, `fd` open for reading there. Use as a context manager. Raises OSError.

    For trees that nobody else changes: the way up is `..`, which leads elsewhere once a directory was moved. Where
    somebody may, `up` is told which directory it must lead to.
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
