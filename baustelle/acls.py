"""Access control lists of FreeBSD, POSIX.1e and NFSv4 (acl(3)). On Linux they are extended attributes.

To be called on FreeBSD only.
"""

import errno
import os

from baustelle.freebsd import fail, library

_ACCESS, _DEFAULT, _NFS4 = 2, 3, 4  # sys/acl.h, ACL_TYPE_
_PC_ACL_EXTENDED, _PC_ACL_NFS4 = 59, 64  # sys/unistd.h: whether the file system keeps such lists
_FIRST_ENTRY = 0


def copy(source: int, target: int, *, directory: bool) -> None:
    """Give the open file `target` the lists of `source` that say more than its mode. Raises OSError.

    Where a file system keeps none, there is nothing to copy.
    """
    if _keeps(source, _PC_ACL_NFS4):
        _copy(source, target, _NFS4)
    elif _keeps(source, _PC_ACL_EXTENDED):
        _copy(source, target, _ACCESS)
        if directory:
            _copy(source, target, _DEFAULT)


def _keeps(fd: int, name: int) -> bool:
    try:
        return os.fpathconf(fd, name) > 0
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False


def _copy(source: int, target: int, kind: int) -> None:
    ffi, libc = library()
    acl = libc.acl_get_fd_np(source, kind)
    if acl == ffi.NULL:
        fail()
    try:
        if _says_something(acl, kind) and libc.acl_set_fd_np(target, acl, kind):
            fail()
    finally:
        libc.acl_free(acl)


def _says_something(acl: object, kind: int) -> bool:
    ffi, libc = library()
    if kind == _DEFAULT:
        return bool(libc.acl_get_entry(acl, _FIRST_ENTRY, ffi.new("acl_entry_t *")) == 1)
    trivial = ffi.new("int *")
    if libc.acl_is_trivial_np(acl, trivial):
        fail()
    return not trivial[0]
