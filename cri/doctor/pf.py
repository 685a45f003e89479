"""Whether pf(4) is enabled, asked of /dev/pf.

The ioctl DIOCGETSTATUSNV (net/pfvar.h; FreeBSD 14 and later) fills a buffer with a packed nvlist(9). Its layout is a header,
then pairs, each with a header of its own, its name with a final NUL, and its data; packed, in the machine's byte order
(sys/contrib/libnv).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

_DEVICE = "/dev/pf"
_BUFFER_BYTES = 64 * 1024
"""The kernel's answer is about 4 KiB."""

_REQUEST = struct.Struct("PNN")
"""struct pfioc_nv: where the answer goes, its length, the room there."""
_IOC_INOUT = 0xC000_0000
DIOCGETSTATUSNV = _IOC_INOUT | _REQUEST.size << 16 | ord("D") << 8 | 21
"""_IOWR('D', 21, struct pfioc_nv), sys/ioccom.h."""

_LIST_HEADER = struct.Struct("=BBBQQ")
"""Magic, version, flags, number of descriptors, size."""
_PAIR_HEADER = struct.Struct("=BHQQ")
"""Type, size of the name, size of the data, number of items."""
_LIST_MAGIC = 0x6C
_TYPE_BOOL = 2
_TYPES_OF_LISTS = (5, 11)
"""An nvlist within, and an array of them: what follows is theirs."""


def running(device: str = _DEVICE) -> bool:
    """Whether pf filters packets in our vnet. Raises OSError: ENOENT if pf is not loaded, EACCES, EPERM."""
    answer = ctypes.create_string_buffer(_BUFFER_BYTES)
    request = bytearray(_REQUEST.pack(ctypes.addressof(answer), 0, _BUFFER_BYTES))
    descriptor = os.open(device, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, DIOCGETSTATUSNV, request)
    finally:
        os.close(descriptor)
    _, length, _ = _REQUEST.unpack(request)
    try:
        return find_boolean(answer.raw[:length], "running")
    except ValueError as error:
        raise OSError(errno.EPROTO, str(error), device) from error


def find_boolean(packed: bytes, wanted: str) -> bool:
    """A boolean of a packed nvlist, of those before the first list within it. Raises ValueError if it is not there."""
    try:
        magic, *_ = _LIST_HEADER.unpack_from(packed)
        if magic != _LIST_MAGIC:
            raise ValueError("the kernel's answer is no nvlist")
        at = _LIST_HEADER.size
        while at < len(packed):
            kind, name_size, data_size, _ = _PAIR_HEADER.unpack_from(packed, at)
            at += _PAIR_HEADER.size
            name = packed[at : at + name_size].rstrip(b"\0").decode(errors="replace")
            at += name_size
            if kind in _TYPES_OF_LISTS:
                break
            if name == wanted and kind == _TYPE_BOOL:
                return bool(packed[at])
            at += data_size
    except (struct.error, IndexError) as error:
        raise ValueError("the kernel's answer ends too early") from error
    raise ValueError(f"the kernel's answer has no {wanted}")
