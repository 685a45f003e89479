"""File flags (chflags(1)): what keeps a file from being changed or removed on FreeBSD. Linux has none.

Flags are the integers of `st_flags`; those of `os.stat_result` and the stat module. They come last when a file is
made, as they may forbid everything else, and go first when it is removed. With kern.securelevel above 0 the
system's own (schg, sappnd, sunlnk) can be set but never cleared: then not even root can remove such a file (EPERM).
"""

import errno
import os
import stat
import sys

PROTECTING = (
    stat.UF_IMMUTABLE
    | stat.UF_APPEND
    | stat.UF_NOUNLINK
    | stat.SF_IMMUTABLE
    | stat.SF_APPEND
    | stat.SF_NOUNLINK
)
"""Those that forbid to change, link or remove."""

NOT_STORABLE = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errno values that mean: this file system does not know one of the flags."""


def of(found: os.stat_result) -> int:
    """The flags of a file; none on systems that have no flags."""
    return (
        getattr(found, "st_flags", 0) & ~stat.SF_SNAPSHOT
    )  # which marks a snapshot of UFS, and cannot be set


if sys.platform.startswith("freebsd"):
    from baustelle.freebsd import fail, library

    _AT_SYMLINK_NOFOLLOW = 0x200  # sys/fcntl.h

    def parse(text: bytes) -> int:
        """The flags that a text names, `schg,uarch`; unknown ones are left out, `none` is 0. See strtofflags(3)."""
        ffi, libc = library()
        flags = 0
        for word in text.split(b","):
            start, wanted, cleared = (
                ffi.new("char[]", word),
                ffi.new("unsigned long *"),
                ffi.new("unsigned long *"),
            )
            if word and libc.strtofflags(ffi.new("char **", start), wanted, cleared) == 0:
                flags |= wanted[0]
        return flags

    def set_on_fd(fd: int, flags: int) -> None:
        """Give an open file or directory these flags and no others. Raises OSError; see `NOT_STORABLE`."""
        if library()[1].fchflags(fd, flags):
            fail()

    def set_on_name(dir_fd: int, name: str | bytes, flags: int) -> None:
        """Give `name` in a directory these flags and no others, without following it. Raises OSError."""
        if library()[1].chflagsat(dir_fd, os.fsencode(name), flags, _AT_SYMLINK_NOFOLLOW):
            fail(name)

else:

    def parse(text: bytes) -> int:  # noqa: ARG001 - flags of another system say nothing here
        """No flags."""
        return 0

    def set_on_fd(fd: int, flags: int) -> None:
        """Refuse: there are no flags here."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), f"flags {flags:#x} of descriptor {fd}")

    def set_on_name(dir_fd: int, name: str | bytes, flags: int) -> None:
        """Refuse: there are no flags here."""
        subject = f"flags {flags:#x} of {os.fsdecode(name)} in descriptor {dir_fd}"
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), subject)


def unprotect(fd: int) -> int:
    """Clear what forbids to change an open file or directory, or what is in it; the flags it had. Raises OSError."""
    flags = of(os.fstat(fd))
    if flags & PROTECTING:
        set_on_fd(fd, flags & ~PROTECTING)
    return flags


def unprotect_name(dir_fd: int, name: str | bytes) -> int:
    """Clear what forbids to remove or link `name` in a directory; the flags it had. Raises OSError."""
    flags = of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    if flags & PROTECTING:
        set_on_name(dir_fd, name, flags & ~PROTECTING)
    return flags
