"""overlayfs' own marks for what a layer deletes of the layers below it (Linux, root only).

A path that does not show is a character device 0/0 in its place; a directory that hides what the layers below
have in it carries the attribute `trusted.overlay.opaque`. A whiteout in a directory that only one layer has would be
listed, as overlayfs reads such a directory straight from its layer; unless that says, with an empty
`trusted.overlay.origin`, that it may be a copy of one below ("copied up but origin unknown").

Source: Documentation/filesystems/overlayfs.rst of the Linux kernel, "whiteouts and opaque directories", and
ovl_get_inode() in fs/overlayfs/inode.c for the origin.
"""

import contextlib
import os
import stat

from baustelle import xattrs

PRIVATE = (b"trusted.overlay.", b"user.overlay.")
"""Beginnings of the attributes in which overlayfs keeps its own state."""

NOT_OF_LAYERS = (*PRIVATE, b"security.selinux")
"""Beginnings of the attributes that a file has of the kernel, whatever the layers say."""

_OPAQUE, _ORIGIN = b"trusted.overlay.opaque", b"trusted.overlay.origin"


def write_whiteout(dir_fd: int, name: bytes) -> None:
    """Hide `name` of the layers below. Raises OSError."""
    os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=dir_fd)


def is_whiteout(found: os.stat_result) -> bool:
    """Whether a file is a whiteout."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def mark_opaque(fd: int) -> None:
    """Hide all that the layers below have in an open directory. Raises OSError."""
    xattrs.set_on_fd(fd, _OPAQUE, b"y")


def is_opaque(fd: int) -> bool:
    """Whether an open directory hides all that the layers below have in it. Raises OSError."""
    try:
        return _OPAQUE in xattrs.names_on_fd(fd) and xattrs.get_on_fd(fd, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno not in xattrs.NOT_STORABLE:
            raise
        return False


def mark_holding_whiteouts(fd: int) -> None:
    """Say that an open directory has whiteouts, which are not to be listed. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        xattrs.set_on_fd(fd, _ORIGIN, b"")
