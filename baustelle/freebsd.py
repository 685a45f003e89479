"""FreeBSD's C library, as far as Python lacks it: extattr(2), chflags(2) below a descriptor, acl(3).

By cffi in ABI mode: all types are plain, so there is nothing to compile.
"""

import functools
import os
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from cffi import FFI

_DECLARATIONS = """
    ssize_t extattr_get_fd(int fd, int space, const char *name, void *data, size_t size);
    ssize_t extattr_set_fd(int fd, int space, const char *name, const void *data, size_t size);
    int extattr_delete_fd(int fd, int space, const char *name);
    ssize_t extattr_list_fd(int fd, int space, void *data, size_t size);

    int fchflags(int fd, unsigned long flags);
    int chflagsat(int fd, const char *path, unsigned long flags, int at);
    int strtofflags(char **text, unsigned long *set, unsigned long *clear);

    typedef void *acl_t;
    typedef void *acl_entry_t;
    acl_t acl_from_text(const char *text);
    acl_t acl_get_fd_np(int fd, int type);
    int acl_set_fd_np(int fd, acl_t acl, int type);
    int acl_get_entry(acl_t acl, int entry_id, acl_entry_t *entry);
    int acl_is_trivial_np(acl_t acl, int *trivial);
    int acl_free(void *object);
"""


@functools.cache
def library() -> tuple["FFI", Any]:
    """The library, and the cffi object that knows its types."""
    from cffi import FFI  # noqa: PLC0415 - parsing takes its time and memory, and few processes come here

    ffi = FFI()
    ffi.cdef(_DECLARATIONS)
    return ffi, ffi.dlopen(None)


def fail(subject: str | bytes | None = None) -> NoReturn:
    """Raise the OSError of the call that just failed."""
    number = library()[0].errno
    raise OSError(number, os.strerror(number), None if subject is None else os.fsdecode(subject))
