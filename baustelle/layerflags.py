"""The file flags of FreeBSD while a layer is laid into a tree: lifted where they are in the way, set at the end.

A layer tells them in the pax record SCHILY.fflags, in the words of chflags(1). Official images of FreeBSD have
schg on the dynamic linker, libc, init and /var/empty; a layer above may replace any of them all the same.
"""

import errno
import os
import stat

from baustelle import fileflags, removal
from baustelle.paths import Walk

_REFUSED = fileflags.NOT_STORABLE | {errno.EPERM}  # that of a jail without allow.chflags


class LayerFlags:
    """The flags of one layer's tree, by link-free path from its root. On systems without flags there are none."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._pending: dict[bytes, int] = {}

    def note(self, path: bytes, text: bytes) -> None:
        """The layer says which flags `path` has; an empty text is none."""
        if flags := fileflags.parse(text):
            self._pending[path] = flags
        else:
            self._pending.pop(path, None)

    def forget(self, path: bytes) -> None:
        """Something else will be at `path`, or nothing."""
        for below in [key for key in self._pending if key == path or key.startswith(path + b"/")]:
            del self._pending[below]

    def lift(self, fd: int, path: bytes) -> None:
        """Let entries be made and removed in an open directory, until `write`. Raises OSError."""
        self._lifted(path, fileflags.unprotect(fd))

    def lift_name(self, dir_fd: int, name: bytes, path: bytes) -> None:
        """Let `name` in a directory be linked to, until `write`. Raises OSError."""
        self._lifted(path, fileflags.unprotect_name(dir_fd, name))

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

    def write(self) -> bool:
        """Set all flags. False if the file system or the jail does not allow some. Raises OSError."""
        complete = True
        for path in sorted(self._pending, reverse=True):  # children first
            try:
                self._write(path)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                complete = False
        return complete

    def _lifted(self, path: bytes, flags: int) -> None:
        if flags & fileflags.PROTECTING:
            self._pending.setdefault(path, flags)

    def _write(self, path: bytes) -> None:
        with Walk(self._root_fd, path or b".") as walk:
            # The walk's descriptor may be one for lookups only, below which names can be changed but not itself.
            name = walk.last()
            parent, last = (walk.fd, name) if name is not None else (self._root_fd, b".")
            fileflags.set_on_name(parent, os.fsdecode(last), self._pending[path])
