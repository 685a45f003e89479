"""libseccomp, by its shared library alone: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).

Version 2.5 or later. Where it is not installed, all else works: who asks for a filter is told.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from cffi import FFI

from cri.sandbox.linux.seccomp.profile import Condition

NAME = "libseccomp.so.2"
REMEDY = "install libseccomp 2.5 or later (Debian: apt-get install libseccomp2) and restart cri-jails"

UNKNOWN = -1
"""What a name that the library does not know resolves to (__NR_SCMP_ERROR)."""
_OLDEST = (2, 5)
_OPTIMIZE, _BINARY_TREE = 8, 2  # SCMP_FLTATR_CTL_OPTIMIZE: a dozen comparisons instead of hundreds
_LARGEST = 1 << 20
"""Bytes of a program that are read back; the kernel takes a small part of that."""

ffi = FFI()
ffi.cdef(
    """
    struct scmp_version { unsigned int major, minor, micro; };
    struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a, datum_b; };
    const struct scmp_version *seccomp_version(void);
    void *seccomp_init(uint32_t action);
    void seccomp_release(void *context);
    int seccomp_attr_set(void *context, int attribute, uint32_t value);
    uint32_t seccomp_arch_resolve_name(const char *name);
    int seccomp_arch_add(void *context, uint32_t architecture);
    int seccomp_syscall_resolve_name_arch(uint32_t architecture, const char *name);
    int seccomp_rule_add_array(void *context, uint32_t action, int number, unsigned int count,
                               const struct scmp_arg_cmp *comparisons);
    int seccomp_export_bpf(void *context, int fd);
    """
)


class LibraryError(Exception):
    """libseccomp is not there, or cannot do what is asked for. Says what; of its absence, the remedy too."""


@functools.cache
def _load() -> Any:
    try:
        library: Any = ffi.dlopen(NAME)
    except OSError as error:
        raise LibraryError(f"{NAME} cannot be loaded ({error}): {REMEDY}") from None
    found = library.seccomp_version()
    if (found.major, found.minor) < _OLDEST:
        raise LibraryError(f"{NAME} is version {found.major}.{found.minor}: {REMEDY}")
    return library


def missing() -> str:
    """Why there are no filters on this node, with the remedy; empty if there are."""
    try:
        _load()
    except LibraryError as error:
        return str(error)
    return ""


def architecture(name: str) -> int:
    """The number of an architecture (AUDIT_ARCH_*); 0 if the library does not know it. Raises LibraryError."""
    return int(_load().seccomp_arch_resolve_name(name.encode()))


@functools.cache
def number(architecture: int, name: str) -> int:
    """The number of a call; below UNKNOWN for one that only other architectures have. Raises LibraryError."""
    return int(_load().seccomp_syscall_resolve_name_arch(architecture, name.encode()))


class Filter:
    """A filter in the making, for the machine's own architecture. A context manager; its methods raise LibraryError."""

    def __init__(self, default: int) -> None:
        self._library = _load()
        self._context = self._library.seccomp_init(default)
        if self._context == ffi.NULL:
            raise LibraryError("make a seccomp filter: libseccomp has refused the default action")

    def __enter__(self) -> Self:
        self._check(
            self._library.seccomp_attr_set(self._context, _OPTIMIZE, _BINARY_TREE), "optimise the filter"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.seccomp_release(self._context)

    def add_architecture(self, architecture: int) -> None:
        """Know the calls of another architecture too. Before any rule."""
        self._check(
            self._library.seccomp_arch_add(self._context, architecture), f"add architecture {architecture:#x}"
        )

    def add(self, action: int, number: int, conditions: Sequence[Condition], subject: str) -> None:
        """A rule for a call; without conditions it replaces those that have some."""
        comparisons = ffi.new("struct scmp_arg_cmp[]", max(1, len(conditions)))
        for comparison, one in zip(comparisons, conditions, strict=False):
            comparison.arg, comparison.op = one.argument, one.operator
            comparison.datum_a, comparison.datum_b = one.value, one.second
        result = self._library.seccomp_rule_add_array(
            self._context, action, number, len(conditions), comparisons
        )
        # The same rule, or one that is part of another, is there already.
        if result != -errno.EEXIST:
            self._check(result, f"add a rule for {subject}")

    def program(self) -> bytes:
        """What the kernel is to run."""
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        try:
            self._check(self._library.seccomp_export_bpf(self._context, fd), "make the program")
            return os.pread(fd, _LARGEST, 0)
        finally:
            os.close(fd)

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise LibraryError(f"{what}: libseccomp says {os.strerror(-result).lower()}")
