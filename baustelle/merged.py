"""What overlayfs shows at a path of several layers, without mounting them."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from baustelle import overlay, xattrs
from baustelle.descent import DIRECTORY, Descent


@dataclass(slots=True)
class Found:
    """What the layers below show at a path."""

    directories: list[Descent] = field(default_factory=list)
    """The places, one directory above, of the layers whose directories of this name are merged, highest first."""
    link: bytes | None = None
    """The target of the link that is shown."""
    anything: bool = False
    """Whether there is any file, a directory included."""


def look(name: bytes, below: Sequence[Descent]) -> Found:
    """What is at `name` in the directories `below`, which overlayfs merges. Raises OSError."""
    found = Found()
    for place in below:
        try:
            seen = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(seen.st_mode):
            if not found.directories and not overlay.is_whiteout(seen):
                found.anything = True
                found.link = os.readlink(name, dir_fd=place.fd) if stat.S_ISLNK(seen.st_mode) else None
            break
        found.anything = True
        found.directories.append(place)
        fd = os.open(name, DIRECTORY, dir_fd=place.fd)
        try:
            if overlay.is_opaque(fd):
                break
        finally:
            os.close(fd)
    return found


def adopt(fd: int, below: int) -> None:
    """Give an open directory the owner, mode, extended attributes and times of another. Raises OSError."""
    found = os.fstat(below)
    os.fchown(fd, found.st_uid, found.st_gid)
    names = xattrs.names_on_fd(below)
    for name in xattrs.names_on_fd(fd):
        if name not in names and not name.startswith(overlay.NOT_OF_LAYERS):
            xattrs.remove_from_fd(fd, name)
    for name in names:
        if not name.startswith(overlay.NOT_OF_LAYERS):
            xattrs.set_on_fd(fd, name, xattrs.get_on_fd(below, name))
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
