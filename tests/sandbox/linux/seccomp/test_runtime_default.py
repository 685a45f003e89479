"""Our own profile: every call is decided about, once, and the page says so."""

import os
from collections import Counter
from pathlib import Path

import pytest

from cri.sandbox.linux import capabilities
from cri.sandbox.linux.seccomp import bpf, library, machine, page, runtime_default
from cri.sandbox.linux.seccomp.compiler import compile_cached
from cri.sandbox.linux.seccomp.runtime_default import LIMITED, OPEN, SHUT

ROOT = Path(__file__).parents[4]
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026
X86_64, X86 = 0xC000003E, 0x40000003

DECIDED = [call for group in (*OPEN, *SHUT) for call in group.calls] + [limited.call for limited in LIMITED]

with_library = pytest.mark.skipif(bool(library.missing()), reason="libseccomp is not installed")
x86_64_only = pytest.mark.skipif(os.uname().machine != "x86_64", reason="has the numbers of x86_64")


def test_no_call_is_decided_about_twice() -> None:
    assert [call for call, times in Counter(DECIDED).items() if times > 1] == []


@with_library
def test_every_call_that_the_library_knows_is_decided_about() -> None:
    from cffi import FFI

    ffi = FFI()
    ffi.cdef("char *seccomp_syscall_resolve_num_arch(uint32_t architecture, int number); void free(void *);")
    loaded = ffi.dlopen(library.NAME)
    found = set()
    for name in ("x86_64", "x86", "aarch64", "arm"):
        architecture = library.architecture(name)
        for number in (
            *range(1000),
            *range(0xF0000, 0xF0010),
        ):  # those of arm alone: include/uapi/asm/unistd.h
            text = loaded.seccomp_syscall_resolve_num_arch(architecture, number)
            if text != ffi.NULL:
                found.add(ffi.string(text).decode())
    assert len(found) > 400
    assert found - set(DECIDED) == set()


def test_capabilities_that_open_something_are_there() -> None:
    assert set(capabilities.NAMES) >= runtime_default.CAPABILITIES


def test_the_page_is_what_the_data_say() -> None:
    assert (ROOT / "docs/seccomp.md").read_text() == page.text(), "run scripts/generate-seccomp"


def answer(name: str, *arguments: int, held=(), architecture=X86_64) -> int:
    here = machine.Machine("amd64", "x86_64", ("x86", "x32"))
    program = compile_cached(runtime_default.profile(held, here.others), here).filter.instructions
    number = {(X86, "socketcall"): 102, (X86, "socket"): 359}.get(
        (architecture, name), library.number(architecture, name)
    )
    assert number >= 0, name
    return bpf.run(program, architecture, number, arguments)


@with_library
@x86_64_only
def test_what_is_open_is_open_to_everybody_and_what_is_shut_to_those_who_may() -> None:
    asked = 0
    for architecture in (X86_64, X86):
        there = [group for group in OPEN for _ in group.calls]
        assert there
        for group in OPEN:
            for call in group.calls:
                if library.number(architecture, call) >= 0:
                    assert answer(call, architecture=architecture) == ALLOW, call
                    asked += 1
        for shut in SHUT:
            for call in shut.calls:
                if library.number(architecture, call) >= 0:
                    assert answer(call, architecture=architecture) == shut.answer.number, call
                    for one in sorted(runtime_default.CAPABILITIES):
                        expected = ALLOW if one in shut.unless else shut.answer.number
                        assert answer(call, held=(one,), architecture=architecture) == expected, (call, one)
                    asked += 1
    assert asked > 700


@with_library
@x86_64_only
@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("clone", (0x11,), ALLOW),
        ("clone", (0x3D0F00,), ALLOW),  # pthread_create(3)
        *(("clone", (flag | 0x11,), EPERM) for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000)),
        *(("clone", (flag | 0x11,), EPERM) for flag in (0x10000000, 0x20000000, 0x40000000)),
        ("clone", (1 << 32 | 0x10000000,), EPERM),
        ("unshare", (0x200,), ALLOW),
        ("unshare", (0x400,), ALLOW),
        ("unshare", (0x10000000,), EPERM),
        ("unshare", (0x80,), EPERM),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0xFFFFFFFFFFFFFFFF,), ALLOW),
        ("personality", (8,), ALLOW),
        ("personality", (0x40000,), EPERM),  # ADDR_NO_RANDOMIZE
        ("personality", (0x400000,), EPERM),  # READ_IMPLIES_EXEC
        *(("socket", (family,), ALLOW) for family in (1, 2, 10, 16, 17)),
        *(("socket", (family,), EPERM) for family in (0, 3, 15, 29, 38, 40, 44)),
        ("socket", (1 << 32 | 40,), EPERM),  # the kernel looks at the lower half
        ("socket", (1 << 32 | 2,), ALLOW),
    ],
)
def test_arguments(call, arguments, expected) -> None:
    assert answer(call, *arguments) == expected
    assert answer(call, *arguments, held=("NET_ADMIN",)) == expected
    whole = ALLOW if call != "personality" else expected
    assert answer(call, *arguments, held=("SYS_ADMIN",)) == whole


@with_library
@x86_64_only
def test_ways_around() -> None:
    assert answer("socketcall", 1, architecture=X86) == EPERM
    assert answer("socketcall", 3, architecture=X86) == ALLOW
    assert answer("socket", 2, architecture=X86) == ALLOW
    assert answer("socket", 40, architecture=X86) == EPERM
    assert answer("clone3") == ENOSYS
    assert answer("clone3", held=("SYS_ADMIN",)) == ALLOW
    here = machine.Machine("amd64", "x86_64", ("x86", "x32"))
    program = compile_cached(runtime_default.profile((), here.others), here).filter.instructions
    assert bpf.run(program, X86_64, 0x40000000) == ENOSYS  # read(2) of x32
    assert bpf.run(program, X86_64, 600) == ENOSYS
    assert bpf.run(program, X86, 600) == ENOSYS
