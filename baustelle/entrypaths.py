"""The paths of a layer's entries, as the archive has them."""

import errno
import os
import re

_UNCLEAN = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")  # a part that is empty, . or ..
_PATH_MAX = 4096  # of Linux; nothing in a container could name a longer path
_SHOWN = 300  # bytes of a name in a message


def clean(name: bytes) -> tuple[bytes, bytes]:
    """The path above an entry and its last name, with `..` resolved in the text and never above the root.

    Raises OSError for one that is too long.
    """
    if len(name) > _PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    path = name.strip(b"/")
    if _UNCLEAN.search(path):
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in {b"", b"."}:
                parts.append(part)
        path = b"/".join(parts)
    above, _, last = path.rpartition(b"/")
    return above, last


def cleaned(name: bytes) -> bytes:
    """The whole path of an entry, likewise."""
    return b"/".join(filter(None, clean(name)))


def shown(name: bytes) -> str:
    """As in a message: quoted, and cut."""
    return repr(os.fsdecode(name[:_SHOWN]))
