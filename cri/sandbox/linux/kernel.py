"""The calls of Linux that Python has no binding for, with types and exceptions.

Every function raises OSError with the kernel's errno and the object it was about; `mount(2)`, `open_tree(2)` and the
other manual pages of these names tell what the arguments mean. Standard library and the compiled binding only.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cri.sandbox.linux._kernel import ffi, lib

CLONE_NEWNS: int = lib.CLONE_NEWNS
CLONE_NEWPID: int = lib.CLONE_NEWPID
CLONE_NEWNET: int = lib.CLONE_NEWNET
CLONE_NEWIPC: int = lib.CLONE_NEWIPC
CLONE_NEWUTS: int = lib.CLONE_NEWUTS
CLONE_NEWCGROUP: int = lib.CLONE_NEWCGROUP

MS_NODEV: int = lib.MS_NODEV
MS_PRIVATE: int = lib.MS_PRIVATE
MS_REC: int = lib.MS_REC
MS_SHARED: int = lib.MS_SHARED
MS_SLAVE: int = lib.MS_SLAVE
MNT_DETACH: int = lib.MNT_DETACH

MOUNT_ATTR_RDONLY: int = lib.MOUNT_ATTR_RDONLY
MOUNT_ATTR_NOSUID: int = lib.MOUNT_ATTR_NOSUID
MOUNT_ATTR_NODEV: int = lib.MOUNT_ATTR_NODEV
MOUNT_ATTR_NOEXEC: int = lib.MOUNT_ATTR_NOEXEC

_AT_FDCWD = -100
# include/uapi/linux/bpf.h
_BPF_PROG_LOAD, _BPF_PROG_ATTACH = 5, 8
_BPF_PROG_TYPE_CGROUP_DEVICE = 15
_BPF_CGROUP_DEVICE = 6
_BPF_F_ALLOW_MULTI = 2
_OPEN_ATTEMPTS = 1000


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Make a mount the old way."""
    result = lib.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        flags,
        ffi.from_buffer(os.fsencode(data) + b"\0"),
    )
    _check(result, f"{kind} on {target}")


def open_in_root(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open what `path` means to a process whose root is `root`: no link leads outside. Raises OSError."""
    for _ in range(_OPEN_ATTEMPTS):
        fd: int = lib.cri_open_in_root(root, os.fsencode(path), flags | os.O_CLOEXEC)
        # With a ".." on the way and somebody renaming anywhere on the node, the kernel cannot tell: openat2(2), EAGAIN.
        if fd >= 0 or ffi.errno != errno.EAGAIN:
            break
    return _check(fd, path)


def unmount(target: str, flags: int = 0) -> None:
    """Take a mount away."""
    _check(lib.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root of the mount namespace."""
    _check(lib.cri_pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def new_filesystem(kind: str, options: dict[str, str | None], attributes: int = 0) -> int:
    """A mount of a new filesystem that is nowhere yet, as a descriptor (fsopen, fsconfig, fsmount).

    An option whose value is None is a flag.
    """
    context = _check(lib.cri_fsopen(kind.encode(), 1), kind)
    try:
        for key, value in options.items():
            command = lib.FSCONFIG_SET_FLAG if value is None else lib.FSCONFIG_SET_STRING
            text = ffi.NULL if value is None else value.encode()
            _check(lib.cri_fsconfig(context, command, key.encode(), text, 0), f"{kind} option {key}={value}")
        _check(lib.cri_fsconfig(context, lib.FSCONFIG_CMD_CREATE, ffi.NULL, ffi.NULL, 0), kind)
        return _check(lib.cri_fsmount(context, 1, attributes), kind)
    finally:
        os.close(context)


def clone_mount(source: str | int, *, recursive: bool = False) -> int:
    """A copy of the mount at a path or descriptor that is nowhere yet (open_tree with OPEN_TREE_CLONE)."""
    flags = lib.OPEN_TREE_CLONE | lib.OPEN_TREE_CLOEXEC | (lib.AT_RECURSIVE if recursive else 0)
    if isinstance(source, int):
        return _check(lib.cri_open_tree(source, b"", flags | lib.AT_EMPTY_PATH), f"descriptor {source}")
    return _check(lib.cri_open_tree(_AT_FDCWD, os.fsencode(source), flags), source)


def attach_mount(tree: int, target: int, subject: str) -> None:
    """Put a mount that is nowhere yet onto the file or directory `target` is open on (move_mount)."""
    flags = lib.MOVE_MOUNT_F_EMPTY_PATH | lib.MOVE_MOUNT_T_EMPTY_PATH
    _check(lib.cri_move_mount(tree, b"", target, b"", flags), subject)


def set_mount(tree: int, *, attributes: int = 0, propagation: int = 0, recursive: bool = False) -> None:
    """Add attributes to a mount, or to all the mounts below it too, and set its propagation (mount_setattr)."""
    flags = lib.AT_EMPTY_PATH | (lib.AT_RECURSIVE if recursive else 0)
    _check(lib.cri_mount_setattr(tree, b"", flags, attributes, 0, propagation), f"descriptor {tree}")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check(lib.unshare(flags), f"namespaces {flags:#x}")


def setns(namespace: int, kind: int) -> None:
    """Enter a namespace by its descriptor."""
    _check(lib.setns(namespace, kind), f"namespace {kind:#x}")


def sync_filesystem(fd: int) -> None:
    """Bring all of the filesystem that `fd` is open on to disk (syncfs).

    Raises OSError, also if a write has failed since `fd` was opened (Linux 5.8).
    """
    _check(lib.syncfs(fd), f"descriptor {fd}")


def restrict_devices(cgroup: int, instructions: bytes) -> None:
    """Let a program decide about each device that a process of a cgroup (version 2) opens or makes.

    `cgroup` is its directory; `instructions` are those of BPF, whose result 0 refuses. What a cgroup above decides counts too.
    """
    license_, text = ffi.new("char[]", b"MIT"), ffi.from_buffer(instructions)
    # union bpf_attr: prog_type, insn_cnt, insns, license, log_level, log_size, log_buf; what is missing is zero.
    load = struct.pack(
        "=IIQQIIQ",
        _BPF_PROG_TYPE_CGROUP_DEVICE,
        len(instructions) // 8,
        int(ffi.cast("uintptr_t", text)),
        int(ffi.cast("uintptr_t", license_)),
        0,
        0,
        0,
    )
    program = _check(lib.cri_bpf(_BPF_PROG_LOAD, ffi.from_buffer(load), len(load)), "BPF program for devices")
    try:
        # target_fd, attach_bpf_fd, attach_type, attach_flags
        attach = struct.pack("=IIII", cgroup, program, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI)
        _check(lib.cri_bpf(_BPF_PROG_ATTACH, ffi.from_buffer(attach), len(attach)), f"descriptor {cgroup}")
    finally:
        os.close(program)


def die_with_parent(signal: int) -> None:
    """Get `signal` when the parent dies. Lost at the exec of a program with setuid bit or file capabilities."""
    _check(lib.cri_prctl(lib.PR_SET_PDEATHSIG, signal, 0, 0, 0), "parent death signal")


def hide_memory() -> None:
    """Let no process read or trace this one and what it forks, until they execute something (PR_SET_DUMPABLE)."""
    _check(lib.cri_prctl(4, 0, 0, 0, 0), "dumpable")


def become_subreaper() -> None:
    """Inherit orphaned descendants instead of init."""
    _check(lib.cri_prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "child subreaper")


def set_name(name: str) -> None:
    """The process's name in ps and top (15 bytes count)."""
    _check(lib.cri_set_name(os.fsencode(name)), name)


def hide_arguments(name: str) -> None:
    """Have /proc/PID/cmdline and environ say `name` and nothing (proc_pid_cmdline(5)); libc's environment is gone with it.

    Where the two are, field 48 and those after it tell of proc_pid_stat(5), to the process itself.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    start, end, environment, environment_end = (int(field) for field in fields[45:49])
    text = os.fsencode(name)[: end - start - 1]
    ffi.memmove(ffi.cast("char *", start), text.ljust(end - start, b"\0"), end - start)
    size = environment_end - environment
    ffi.memmove(ffi.cast("char *", environment), bytes(size), size)


def bounding_capabilities() -> int:
    """The capability bounding set as a bit mask."""
    bits = number = 0
    while (found := lib.cri_prctl(lib.PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        bits |= found << number
        number += 1
    return bits


def permitted_capabilities() -> int:
    """The permitted set as a bit mask."""
    sets = ffi.new("uint64_t[3]")
    _check(lib.cri_capget(sets, sets + 1, sets + 2), "capabilities")
    return int(sets[1])


@dataclass(frozen=True, slots=True)
class Program:
    """How a process becomes a program: `struct program` in kernel.c."""

    argv: Sequence[str]
    env: Mapping[str, str]
    candidates: Sequence[str]
    cwd: str
    uid: int
    gid: int
    groups: Sequence[int]
    drop: int
    """Capabilities that leave the bounding set, as a bit mask."""
    capabilities: int
    """What root keeps."""
    no_new_privileges: bool
    report: int
    cgroups: Sequence[str] = ()
    """Files to write 0 to."""
    late_cgroups: Sequence[str] = ()
    """The same, of groups that may not be made yet."""
    oom_score: int | None = None
    mounts: int = -1
    cgroup_namespace: int = -1
    stdio: tuple[int, int, int] | None = (-1, -1, -1)
    """-1 is /dev/null; None: session and standard streams are made already."""


class ProgramError(Exception):
    """A process did not become its program."""

    def __init__(self, failed: str, number: int) -> None:
        super().__init__(f"{failed}: {os.strerror(number)}")
        self.failed = failed
        self.errno = number


def become(program: Program) -> NoReturn:
    """Become the program. Raises ProgramError; the process is half-way then, and of no other use."""
    native, _alive = _native(program)
    lib.cri_become(native)
    raise ProgramError(ffi.string(native.failed).decode(), native.error)


def _native(program: Program) -> tuple[Any, list[Any]]:
    """The struct, and what must live as long as it does."""
    alive: list[Any] = []

    def text(value: str) -> Any:
        data = os.fsencode(value)
        if b"\0" in data:
            raise OSError(errno.EINVAL, "a NUL byte inside", value)
        alive.append(ffi.new("char[]", data))
        return alive[-1]

    def texts(values: Iterable[str]) -> Any:
        alive.append(ffi.new("char *[]", [*map(text, values), ffi.NULL]))
        return alive[-1]

    groups = ffi.new("uint32_t[]", list(program.groups))
    alive.append(groups)
    native = ffi.new("struct program *")
    native.cgroups = texts(program.cgroups)
    native.late_cgroups = texts(program.late_cgroups)
    native.oom_score = ffi.NULL if program.oom_score is None else text(str(program.oom_score))
    native.mounts = program.mounts
    native.cgroup_namespace = program.cgroup_namespace
    native.terminal = program.stdio is None
    native.stdio = program.stdio or (-1, -1, -1)
    native.cwd = text(program.cwd)
    native.drop = program.drop
    native.capabilities = program.capabilities
    native.uid = program.uid
    native.gid = program.gid
    native.groups = groups
    native.group_count = len(groups)
    native.no_new_privileges = program.no_new_privileges
    native.report = program.report
    native.candidates = texts(program.candidates)
    native.argv = texts(program.argv)
    native.env = texts(f"{key}={value}" for key, value in program.env.items())
    return native, alive


def reap_forever() -> NoReturn:
    """Be the init of a pid namespace: close all descriptors and reap whatever is orphaned, until killed."""
    lib.cri_reap_forever()
    os._exit(1)


def _check(result: int, subject: str) -> int:
    if result < 0:
        number = ffi.errno
        raise OSError(number, os.strerror(number), subject)
    return result
