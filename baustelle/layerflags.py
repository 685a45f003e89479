"""The file flags of FreeBSD while a layer is laid into a tree: lifted where they are in the way, set at the end.

A layer tells them in the pax record SCHILY.fflags, in the words of chflags(1). Official images of FreeBSD have
schg on the dynamic linker, libc, init and /var/empty; a layer above may replace any of them all the same.
"""

import errno
import os
import stat

from baustelle import fileflags, removal
from baustelle.layertree import Node

_REFUSED = fileflags.NOT_STORABLE | {errno.EPERM}  # that of a jail without allow.chflags


class LayerFlags:
    """The flags of one layer's files, kept in its nodes. On systems without flags there are none."""

    def __init__(self) -> None:
        self.complete = True
        """Whether the file system, and the jail, has allowed all that were set."""

    def note(self, node: Node, text: bytes) -> None:
        """The layer says which flags its file has; an empty text is none."""
        node.flags = fileflags.parse(text) or None

    def lift(self, fd: int, node: Node) -> None:
        """Let entries be made and removed in an open directory, until `write`. Raises OSError."""
        self._lifted(node, fileflags.unprotect(fd))

    def lift_name(self, dir_fd: int, name: bytes, node: Node) -> None:
        """Let `name` in a directory be linked to, until `write`. Raises OSError."""
        self._lifted(node, fileflags.unprotect_name(dir_fd, name))

    def unlink(self, dir_fd: int, name: bytes, found: os.stat_result) -> None:
        """Remove `name`, which is no directory; other names of the same file keep their flags. Raises OSError."""
        flags = fileflags.of(found)
        if found.st_nlink == 1 or not stat.S_ISREG(found.st_mode) or not flags & fileflags.PROTECTING:
            removal.unlink(name, dir_fd)
            return
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            removal.unlink(name, dir_fd)
            fileflags.set_on_fd(fd, flags)
        finally:
            os.close(fd)

    def write(self, dir_fd: int, name: bytes, node: Node) -> None:
        """Set the flags of `name` in a directory, in which nothing is made any more. Raises OSError."""
        if node.flags is None:
            return
        try:
            fileflags.set_on_name(dir_fd, name, node.flags)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self.complete = False

    def _lifted(self, node: Node, flags: int) -> None:
        if flags & fileflags.PROTECTING and node.flags is None:
            node.flags = flags
