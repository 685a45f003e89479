"""Extended attributes, spelt the same on Linux and FreeBSD.

Names are those of Linux and of the SCHILY.xattr records in tar archives: `user.mime_type`,
`security.capability`. FreeBSD has the name spaces `user` and `system` (extattr(2)) and knows nothing of the
others, which belong to the Linux kernel.
"""

import ctypes
import errno
import os
import sys

NOT_STORABLE = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errno values that mean: this file system does not keep attributes of that kind."""

_EXTATTR_NAMESPACES = {"user": 1, "system": 2}  # sys/extattr.h


def set_on_fd(fd: int, name: bytes, value: bytes) -> None:
    """Set one attribute of an open file or directory. Raises OSError; see `NOT_STORABLE`."""
    if sys.platform == "linux":
        os.setxattr(fd, name, value)
    else:
        _extattr_set("extattr_set_fd", ctypes.c_int(fd), name, value)


def set_on_name(dir_fd: int, name: bytes, attribute: bytes, value: bytes) -> None:
    """Set one attribute of `name` in a directory without opening or following it: links, fifos, devices."""
    # There is no lsetxattrat(2) in the systems of today; the descriptor's name pins the directory.
    path = f"/{'proc/self' if sys.platform == 'linux' else 'dev'}/fd/{dir_fd}/".encode() + name
    if sys.platform == "linux":
        os.setxattr(path, attribute, value, follow_symlinks=False)
    else:
        _extattr_set("extattr_set_link", ctypes.c_char_p(path), attribute, value)


def _extattr_set(
    function: str, target: ctypes.c_int | ctypes.c_char_p, attribute: bytes, value: bytes
) -> None:
    """extattr_set_fd(2) and extattr_set_link(2), which the standard library does not offer."""
    space, _, name = attribute.partition(b".")
    namespace = _EXTATTR_NAMESPACES.get(os.fsdecode(space))
    if namespace is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), os.fsdecode(attribute))
    call = getattr(ctypes.CDLL(None, use_errno=True), function)
    call.restype = ctypes.c_ssize_t
    written = call(target, namespace, ctypes.c_char_p(name), value, ctypes.c_size_t(len(value)))
    if written < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(attribute))
