"""overlayfs' own marks for what a layer deletes of the layers below it (Linux, root only).

A path that does not show is a character device 0/0 in its place; a directory that hides what the layers below
have in it carries the attribute `trusted.overlay.opaque`.

Source: Documentation/filesystems/overlayfs.rst of the Linux kernel, "whiteouts and opaque directories".
"""

import os
import stat

from baustelle import xattrs
from baustelle.errors import UnpackError
from baustelle.paths import Walk, make_implied_directory, open_beneath

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OverlayMarks:
    """The marks of one layer, by path from its root.

    They are collected and written at the end, when it is known what the layer itself has at the same
    places: the order of its entries must not matter.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._hidden: set[bytes] = set()
        self._opaque: set[bytes] = set()

    def hide(self, path: bytes) -> None:
        """Nothing of the layers below shows at `path`."""
        self._hidden.add(path)

    def make_opaque(self, path: bytes) -> None:
        """Nothing of the layers below shows in the directory `path`."""
        self._opaque.add(path)

    def write(self) -> None:
        """Make all marks. Raises UnpackError."""
        for path in [*sorted(self._opaque), *sorted(self._hidden)]:
            try:
                if path in self._opaque:
                    self._write_opaque(path)
                else:
                    self._write_whiteout(path)
            except OSError as error:
                raise UnpackError(
                    f"whiteout of {os.fsdecode(path)!r}: {error.strerror}; overlayfs' marks need root on Linux"
                ) from error

    def _write_whiteout(self, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        try:
            with Walk(self._root_fd, above + b"/.", on_missing=make_implied_directory) as walk:
                walk.last()
                self._write_whiteout_in(walk, name)
        except NotADirectoryError:
            return  # a file of this layer, or a whiteout, hides the whole directory

    def _write_whiteout_in(self, walk: Walk, name: bytes) -> None:
        # In an opaque directory there is nothing to hide, and overlayfs would list the mark as a file.
        if any(b"/".join(walk.names[:depth]) in self._opaque for depth in range(len(walk.names) + 1)):
            return
        try:
            found = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
        except FileNotFoundError:
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=walk.fd)
        else:
            if stat.S_ISDIR(found.st_mode):
                path = b"/".join([*walk.names, name])
                self._opaque.add(path)
                self._write_opaque(path)

    def _write_opaque(self, path: bytes) -> None:
        try:
            fd = open_beneath(self._root_fd, path or b".", _OPEN_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return  # a later entry replaced it
        try:
            xattrs.set_on_fd(fd, b"trusted.overlay.opaque", b"y")
        finally:
            os.close(fd)
