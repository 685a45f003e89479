"""libzfs_core, ZFS's stable library: datasets, snapshots, clones, and channel programs (zfs-program(8)) to ask about them.

By cffi in ABI mode, as the base system installs no headers that compile, and may itself be without ZFS. Every call
blocks until the pool has it on disk, and raises OSError with the dataset's name.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping
from typing import Any

from cffi import FFI

Value = str | int | bool
"""Of a property: numbers and indexes (canmount, exec) are integers."""

ON, OFF = 1, 0
"""Of properties that are an index."""

_LIBRARIES = ("libnvpair.so.2", "libnvpair.so"), ("libzfs_core.so.2", "libzfs_core.so")
_FILESYSTEM = 2
"""LZC_DATSET_TYPE_ZFS."""
_UNIQUE_NAME = 1
_INSTRUCTIONS, _MEMORY = 100_000_000, 100 << 20
"""What a channel program may use; the most that ZFS allows."""
_INT64, _UINT64, _STRING, _NVLIST, _BOOLEAN_VALUE = 7, 8, 9, 19, 21
"""Types in an nvlist, data_type_t."""

_ffi = FFI()
_ffi.cdef("""
    typedef struct nvlist nvlist_t;
    typedef struct nvpair nvpair_t;

    int nvlist_alloc(nvlist_t **, unsigned int flags, int);
    void nvlist_free(nvlist_t *);
    int nvlist_add_boolean(nvlist_t *, const char *);
    int nvlist_add_boolean_value(nvlist_t *, const char *, int);
    int nvlist_add_uint64(nvlist_t *, const char *, uint64_t);
    int nvlist_add_string(nvlist_t *, const char *, const char *);
    nvpair_t *nvlist_next_nvpair(nvlist_t *, const nvpair_t *);
    const char *nvpair_name(const nvpair_t *);
    int nvpair_type(const nvpair_t *);
    int nvpair_value_boolean_value(const nvpair_t *, int *);
    int nvpair_value_int64(const nvpair_t *, int64_t *);
    int nvpair_value_uint64(const nvpair_t *, uint64_t *);
    int nvpair_value_string(const nvpair_t *, const char **);
    int nvpair_value_nvlist(nvpair_t *, nvlist_t **);

    int libzfs_core_init(void);
    int lzc_exists(const char *name);
    int lzc_create(const char *name, int type, nvlist_t *properties, uint8_t *key, unsigned int key_size);
    int lzc_clone(const char *name, const char *origin, nvlist_t *properties);
    int lzc_snapshot(nvlist_t *snapshots, nvlist_t *properties, nvlist_t **errors);
    int lzc_rename(const char *from, const char *to);
    int lzc_destroy(const char *name);
    int lzc_destroy_snaps(nvlist_t *snapshots, int defer, nvlist_t **errors);
    int lzc_sync(const char *pool, nvlist_t *options, nvlist_t **);
    int lzc_channel_program_nosync(const char *pool, const char *program, uint64_t instructions, uint64_t memory,
        nvlist_t *arguments, nvlist_t **result);
""")


class LibZfs:
    """The library; to be had from `load`."""

    def __init__(self, nvpair: Any, core: Any) -> None:
        self._nv = nvpair
        self._core = core

    def exists(self, name: str) -> bool:
        """Whether there is a dataset, or a snapshot, of that name."""
        return bool(self._core.lzc_exists(name.encode()))

    def create(self, name: str, properties: Mapping[str, Value]) -> None:
        """Make an empty filesystem. Its parent exists. EEXIST, ENOENT, ENOSPC."""
        arguments = self._list(properties)
        self._check(self._core.lzc_create(name.encode(), _FILESYSTEM, arguments, _ffi.NULL, 0), name)

    def clone(self, name: str, origin: str, properties: Mapping[str, Value]) -> None:
        """Make a filesystem that begins with the content of the snapshot `origin`. EEXIST, ENOENT, ENOSPC."""
        self._check(self._core.lzc_clone(name.encode(), origin.encode(), self._list(properties)), name)

    def snapshot(self, name: str, properties: Mapping[str, str]) -> None:
        """Make the snapshot `dataset@snapshot` with user properties. EEXIST."""
        errors = _ffi.new("nvlist_t **")
        found = self._core.lzc_snapshot(self._list({name: True}), self._list(properties), errors)
        self._nv.nvlist_free(errors[0])
        self._check(found, name)

    def rename(self, name: str, to: str) -> None:
        """Give a dataset another name. ENOENT, EEXIST, EBUSY."""
        self._check(self._core.lzc_rename(name.encode(), to.encode()), name)

    def destroy(self, name: str) -> None:
        """Destroy a filesystem that has neither snapshots nor children. ENOENT, EBUSY if it is mounted or has some."""
        self._check(self._core.lzc_destroy(name.encode()), name)

    def destroy_snapshot(self, name: str) -> None:
        """Destroy a snapshot; succeeds if it is gone. EBUSY if it is mounted, EEXIST while it has clones."""
        errors = _ffi.new("nvlist_t **")
        found = self._core.lzc_destroy_snaps(self._list({name: True}), 0, errors)
        self._nv.nvlist_free(errors[0])
        self._check(found, name)

    def sync(self, name: str) -> None:
        """Wait until what was written to the dataset's pool is on disk, and counted in its properties."""
        options = self._list({"force": False})  # no need to write out the configuration of the pool too
        self._check(self._core.lzc_sync(_pool(name), options, _ffi.new("nvlist_t **")), name)

    def ask(self, program: str, *, of: str) -> Any:
        """What a channel program in Lua returns, which gets `{dataset = of}`. Raises OSError with the program's message.

        Tables become dictionaries. The whole program sees one state of the pool.
        """
        result = _ffi.new("nvlist_t **")
        found = self._core.lzc_channel_program_nosync(
            _pool(of), program.encode(), _INSTRUCTIONS, _MEMORY, self._list({"dataset": of}), result
        )
        answer = self._dictionary(result[0]) if result[0] != _ffi.NULL else {}
        self._nv.nvlist_free(result[0])
        if "error" in answer:
            raise OSError(found, f"channel program: {answer['error']}", of)
        self._check(found, of)
        return answer.get("return")

    def _check(self, number: int, name: str) -> None:
        if number:
            raise OSError(number, os.strerror(number), name)

    def _list(self, values: Mapping[str, Value]) -> Any:
        """An nvlist, which is freed with the Python object."""
        allocated = _ffi.new("nvlist_t **")
        if number := self._nv.nvlist_alloc(allocated, _UNIQUE_NAME, 0):
            raise OSError(number, os.strerror(number))
        for name, value in values.items():
            key = name.encode()
            if value is True:  # a mere name, as in the list of snapshots
                self._nv.nvlist_add_boolean(allocated[0], key)
            elif value is False:
                self._nv.nvlist_add_boolean_value(allocated[0], key, 0)
            elif isinstance(value, int):
                self._nv.nvlist_add_uint64(allocated[0], key, value)
            else:
                self._nv.nvlist_add_string(allocated[0], key, value.encode())
        return _ffi.gc(allocated[0], self._nv.nvlist_free)

    def _dictionary(self, values: Any) -> dict[str, Any]:
        found = {}
        pair = self._nv.nvlist_next_nvpair(values, _ffi.NULL)
        while pair != _ffi.NULL:
            found[_text(self._nv.nvpair_name(pair))] = self._value(pair)
            pair = self._nv.nvlist_next_nvpair(values, pair)
        return found

    def _value(self, pair: Any) -> Any:
        kind = self._nv.nvpair_type(pair)
        if kind == _NVLIST:
            inner = _ffi.new("nvlist_t **")
            self._nv.nvpair_value_nvlist(pair, inner)
            return self._dictionary(inner[0])
        if kind == _STRING:
            text = _ffi.new("const char **")
            self._nv.nvpair_value_string(pair, text)
            return _text(text[0])
        for wanted, type_, read in (
            (_INT64, "int64_t *", self._nv.nvpair_value_int64),
            (_UINT64, "uint64_t *", self._nv.nvpair_value_uint64),
            (_BOOLEAN_VALUE, "int *", self._nv.nvpair_value_boolean_value),
        ):
            if kind == wanted:
                number = _ffi.new(type_)
                read(pair, number)
                return bool(number[0]) if kind == _BOOLEAN_VALUE else number[0]
        return None  # a boolean: that it is there is all it says


@functools.cache
def load() -> LibZfs:
    """The library, ready for use. Raises OSError if it is not installed, or the kernel has no ZFS."""
    nvpair, core = (_open(names) for names in _LIBRARIES)
    if number := core.libzfs_core_init():
        raise OSError(number, f"{os.strerror(number)}: is zfs.ko loaded?", "/dev/zfs")
    return LibZfs(nvpair, core)


def _open(names: tuple[str, ...]) -> Any:
    reasons = []
    for name in names:
        try:
            return _ffi.dlopen(name)
        except OSError as error:
            reasons.append(str(error))
    raise OSError(errno.ENOENT, "; ".join(reasons), names[0])


def _pool(name: str) -> bytes:
    return name.partition("/")[0].encode()


def _text(pointer: Any) -> str:
    raw = _ffi.string(pointer)
    assert isinstance(raw, bytes)
    return os.fsdecode(raw)
