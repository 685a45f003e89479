"""Extended attributes, spelt the same on Linux and FreeBSD.

Names are those of Linux and of the SCHILY.xattr records in tar archives: `user.mime_type`,
`security.capability`. FreeBSD has the name spaces `user` and `system` (extattr(2)) and knows nothing of the
others, which belong to the Linux kernel.
"""

import errno
import os
import sys

NOT_STORABLE = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errno values that mean: this file system does not keep attributes of that kind."""

if sys.platform == "linux":

    def names_on_fd(fd: int) -> list[bytes]:
        """The attributes that an open file or directory has, as far as we may see them. Raises OSError."""
        return [os.fsencode(name) for name in os.listxattr(fd)]

    def get_on_fd(fd: int, name: bytes) -> bytes:
        """An attribute's value. Raises OSError."""
        return os.getxattr(fd, name)

    def set_on_fd(fd: int, name: bytes, value: bytes) -> None:
        """Set one attribute of an open file or directory. Raises OSError; see `NOT_STORABLE`."""
        os.setxattr(fd, name, value)

    def remove_from_fd(fd: int, name: bytes) -> None:
        """Remove one attribute of an open file or directory. Raises OSError."""
        os.removexattr(fd, name)

    def names_on_name(dir_fd: int, name: str | bytes) -> list[bytes]:
        """The attributes of `name` in a directory, which is not followed. Raises OSError."""
        return [os.fsencode(one) for one in os.listxattr(_path(dir_fd, name), follow_symlinks=False)]

    def get_on_name(dir_fd: int, name: str | bytes, attribute: bytes) -> bytes:
        """The value of an attribute of `name` in a directory, which is not followed. Raises OSError."""
        return os.getxattr(_path(dir_fd, name), attribute, follow_symlinks=False)

    def set_on_name(dir_fd: int, name: str | bytes, attribute: bytes, value: bytes) -> None:
        """Set one attribute of `name` in a directory without following it: links, FIFOs, devices."""
        os.setxattr(_path(dir_fd, name), attribute, value, follow_symlinks=False)

    def _path(dir_fd: int, name: str | bytes) -> bytes:
        # There is no lsetxattrat(2) in the systems of today; the descriptor's name pins the directory.
        return f"/proc/self/fd/{dir_fd}/".encode() + os.fsencode(name)

else:
    from baustelle.freebsd import fail, library

    _NAMESPACES = {b"user": 1, b"system": 2}  # sys/extattr.h
    # These hold the ACLs of UFS, which `baustelle.acls` copies.
    _ACLS = frozenset({b"posix1e.acl_access", b"posix1e.acl_default", b"nfs4.acl"})

    def names_on_fd(fd: int) -> list[bytes]:
        """The attributes that an open file or directory has, as far as we may see them. Raises OSError."""
        names = []
        for prefix, space in _NAMESPACES.items():
            try:
                listed = _list(fd, space)
            except PermissionError:
                continue  # the system name space is root's, and out of reach in most jails
            names += [prefix + b"." + name for name in listed if name not in _ACLS]
        return names

    def get_on_fd(fd: int, name: bytes) -> bytes:
        """An attribute's value. Raises OSError."""
        (ffi, libc), (space, own_name) = library(), _split(name)
        size = libc.extattr_get_fd(fd, space, own_name, ffi.NULL, 0)
        if size < 0:
            fail(name)
        data = ffi.new("char[]", max(size, 1))
        size = libc.extattr_get_fd(fd, space, own_name, data, size)
        if size < 0:
            fail(name)
        return bytes(ffi.buffer(data, size))

    def set_on_fd(fd: int, name: bytes, value: bytes) -> None:
        """Set one attribute of an open file or directory. Raises OSError; see `NOT_STORABLE`."""
        space, own_name = _split(name)
        if library()[1].extattr_set_fd(fd, space, own_name, value, len(value)) < 0:
            fail(name)

    def remove_from_fd(fd: int, name: bytes) -> None:
        """Remove one attribute of an open file or directory. Raises OSError."""
        space, own_name = _split(name)
        if library()[1].extattr_delete_fd(fd, space, own_name) < 0:
            fail(name)

    def set_on_name(dir_fd: int, name: str | bytes, attribute: bytes, value: bytes) -> None:
        """Set one attribute of `name` in a directory without following it: links, FIFOs, devices."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            set_on_fd(fd, attribute, value)
        finally:
            os.close(fd)

    def _split(name: bytes) -> tuple[int, bytes]:
        prefix, _, own_name = name.partition(b".")
        if prefix not in _NAMESPACES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), os.fsdecode(name))
        return _NAMESPACES[prefix], own_name

    def _list(fd: int, space: int) -> list[bytes]:
        ffi, libc = library()
        size = libc.extattr_list_fd(fd, space, ffi.NULL, 0)
        if size < 0 and ffi.errno in NOT_STORABLE:
            return []
        if size < 0:
            fail()
        if not size:
            return []
        data = ffi.new("char[]", size)
        size = libc.extattr_list_fd(fd, space, data, size)
        if size < 0:
            fail()
        rest, names = bytes(ffi.buffer(data, size)), []
        while rest:  # each name comes after a byte that tells its length
            end = 1 + rest[0]
            names.append(rest[1:end])
            rest = rest[end:]
        return names
