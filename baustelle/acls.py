"""Access control lists, POSIX.1e and NFSv4: FreeBSD's by acl(3), on Linux POSIX.1e alone, as extended attributes."""

import errno
import os
import sys

from baustelle import acltext, xattrs
from baustelle.freebsd import fail, library

_ACCESS, _DEFAULT, _NFS4 = 2, 3, 4  # sys/acl.h, ACL_TYPE_
_PC_ACL_EXTENDED, _PC_ACL_NFS4 = 59, 64  # sys/unistd.h: whether the file system keeps such lists
_FIRST_ENTRY = 0
_KINDS = {acltext.ACCESS: _ACCESS, acltext.DEFAULT: _DEFAULT, acltext.NFS4: _NFS4}


if sys.platform.startswith("freebsd"):

    def set_on_fd(fd: int, record: bytes, text: bytes) -> None:
        """Give an open file the list of a pax record. Raises OSError, CorruptLayerError, NamesOnlyError."""
        ffi, libc = library()
        nfs4 = record == acltext.NFS4
        # First, as what is no list is refused whatever the file system keeps.
        numeric = acltext.numeric(text, nfs4=nfs4)
        if not _keeps(fd, _PC_ACL_NFS4 if nfs4 else _PC_ACL_EXTENDED):
            raise _not_kept(record)
        acl = libc.acl_from_text(numeric)
        if acl == ffi.NULL:
            fail(record)
        try:
            if libc.acl_set_fd_np(fd, acl, _KINDS[record]):
                fail(record)
        finally:
            libc.acl_free(acl)

    def set_on_name(dir_fd: int, name: bytes, record: bytes, text: bytes) -> None:  # noqa: ARG001
        """Refuse: a device or a FIFO cannot be opened without side effects, and nobody gives them lists."""
        raise _not_kept(record)

else:

    def set_on_fd(fd: int, record: bytes, text: bytes) -> None:
        """Give an open file the list of a pax record. Raises OSError, CorruptLayerError, NamesOnlyError."""
        xattrs.set_on_fd(fd, _attribute(record), acltext.attribute(text))

    def set_on_name(dir_fd: int, name: bytes, record: bytes, text: bytes) -> None:
        """As `set_on_fd`, of `name` in a directory, which is no link."""
        xattrs.set_on_name(dir_fd, name, _attribute(record), acltext.attribute(text))


def _attribute(record: bytes) -> bytes:
    if record not in acltext.ATTRIBUTES:
        raise _not_kept(record)
    return acltext.ATTRIBUTES[record]


def _not_kept(record: bytes) -> OSError:
    return OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), record.decode())


def copy(source: int, target: int, *, directory: bool) -> None:
    """On FreeBSD: give the open file `target` the lists of `source` that say more than its mode. Raises OSError.

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
