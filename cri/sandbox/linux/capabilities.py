"""Capability names and sets (capabilities(7)) of containers."""

from __future__ import annotations

import functools

from cri.sandbox.host import HostError
from cri.sandbox.linux import kernel
from cri.sandbox.spec import Security

# In the order of their numbers, include/uapi/linux/capability.h.
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip

# What container engines agree on for a container that says nothing.
DEFAULT = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip

_BITS = {name: 1 << number for number, name in enumerate(NAMES)}


def wanted(security: Security) -> int:
    """The set that a container asks for, as a bit mask. Raises HostError for an unknown name."""
    everything = sum(_BITS.values())
    if security.privileged:
        return everything
    add, drop = map(_names, (security.add_capabilities, security.drop_capabilities))
    bits = _mask(DEFAULT)
    # ALL first, then the single names, so that "drop ALL, add CHOWN" and "add ALL, drop CHOWN" both mean what they say.
    if "ALL" in add:
        bits = everything
    if "ALL" in drop:
        bits = 0
    return (bits | _mask(add)) & ~_mask(drop)


def names(bits: int) -> frozenset[str]:
    """What is in a bit mask, by name."""
    return frozenset(name for name, bit in _BITS.items() if bits & bit)


def possible(bits: int) -> tuple[int, int]:
    """What of `bits` a child of ours can have, and what it must drop from its bounding set. Bit masks."""
    bounding, permitted = _own()
    return bits & bounding & permitted, bounding & ~bits


@functools.cache
def _own() -> tuple[int, int]:
    """The bounding and the permitted set of this process, which keeps both all its life."""
    return kernel.bounding_capabilities(), kernel.permitted_capabilities()


def _names(given: tuple[str, ...]) -> list[str]:
    return [name.upper().removeprefix("CAP_") for name in given]


def _mask(names: tuple[str, ...] | list[str]) -> int:
    bits = 0
    for name in names:
        if name == "ALL":
            continue
        if name not in _BITS:
            raise HostError("set", f'capability "{name}"', "there is no capability of this name")
        bits |= _BITS[name]
    return bits
