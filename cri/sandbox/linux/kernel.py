"""The calls of Linux that Python has no binding for, with types and exceptions.

Every function raises OSError with the kernel's errno and the object it was about; `mount(2)`, `open_tree(2)` and the
other manual pages of these names tell what the arguments mean. Standard library and the compiled binding only.
"""

from __future__ import annotations

import errno
import os
import struct

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


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check(lib.unshare(flags), f"namespaces {flags:#x}")


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


def hide_memory() -> None:
    """Let no process read or trace this one and what it forks, until they execute something (PR_SET_DUMPABLE)."""
    _check(lib.cri_prctl(4, 0, 0, 0, 0), "dumpable")


def become_subreaper() -> None:
    """Inherit orphaned descendants instead of init."""
    _check(lib.cri_prctl(lib.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "child subreaper")


def set_name(name: str) -> None:
    """The process's name in ps and top (15 bytes count)."""
    _check(lib.cri_set_name(os.fsencode(name)), name)


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


def _check(result: int, subject: str) -> int:
    if result < 0:
        number = ffi.errno
        raise OSError(number, os.strerror(number), subject)
    return result
