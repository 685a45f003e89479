"""Which devices the processes of a container may use: the `devices` controller of cgroups, version 1, or a BPF program.

Kernel: Documentation/admin-guide/cgroup-v1/devices.rst, and cgroup-v2.rst, "Device controller".
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from cri.sandbox.host import HostError, UnfitRequestError
from cri.sandbox.linux import cgroup_files, kernel
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.device_nodes import HARMLESS, DeviceNode, harmless_name
from cri.sandbox.spec import DeviceSpec

log = structlog.get_logger(__name__)

_ACCESS = {"m": 1, "r": 2, "w": 4}
_KINDS = {"b": 1, "c": 2}
"""BPF_DEVCG_ACC_ and BPF_DEVCG_DEV_ of include/uapi/linux/bpf.h."""
_CANNOT = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""What a kernel without these programs answers, or one that lets us load none."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Devices that may be used; None stands for every number."""

    kind: str
    """c or b."""
    major: int | None
    minor: int | None
    access: str = "rwm"
    """r: read, w: write, m: make a node of it."""

    def __str__(self) -> str:
        numbers = ("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.kind} {':'.join(numbers)} {self.access}"


ALWAYS = (
    # A node that cannot be opened is but a name.
    Rule("c", None, None, "m"),
    Rule("b", None, None, "m"),
    *(Rule("c", *number) for number in HARMLESS.values()),
    Rule("c", 5, 2),  # ptmx and pts open what the devpts beside them has, and nothing without one
    Rule("c", 136, None),
)
"""As container engines have it, but for the node's console."""


def rules(devices: Iterable[tuple[DeviceSpec, DeviceNode]]) -> list[Rule]:
    """All that a container may use."""
    return [*ALWAYS, *(Rule(*node.rule, device.permissions) for device, node in devices)]


def restrict(group: Group, allowed: Sequence[Rule]) -> bool:
    """Let the processes of a group use these devices only. Raises HostError.

    False if this node cannot do that: then the mounts of the container must see to it.
    """
    if group.version == 2:
        return _restrict_v2(group.directories[""], allowed)
    if "devices" not in group.directories:
        return False
    group.set("devices", "devices.deny", "a")
    cgroup_files.write_each(f"{group.directories['devices']}/devices.allow", map(str, allowed))
    return True


def check(devices: Iterable[tuple[DeviceSpec, DeviceNode]], *, ruled: bool) -> None:
    """Refuse what cannot be kept from a container: some of /dev/null and its like, or, without rules, of any device.

    A read-only mount keeps nobody from writing to a device. Raises UnfitRequestError.
    """
    for device, node in devices:
        if {"r", "w"} <= set(device.permissions) or (ruled and not harmless_name(node)):
            continue
        why = (
            "this node cannot control devices by cgroup" if not ruled else "every container may use this one"
        )
        raise UnfitRequestError(
            "use",
            f"device {device.source}",
            f"permissions {device.permissions!r} cannot be enforced: {why}; ask for rw or rwm",
        )


def program(allowed: Sequence[Rule]) -> bytes:
    """The BPF program that returns 1 for what is allowed, else 0.

    It gets struct bpf_cgroup_dev_ctx: the access asked for above 16 bits of kind, the major and the minor number.
    """
    code = [
        _instruction(0x61, 2, 1),  # r2 = kind and access
        _instruction(0xBF, 3, 2),  # r3 = r2
        _instruction(0x57, 2, immediate=0xFFFF),  # r2 &= 0xffff
        _instruction(0x77, 3, immediate=16),  # r3 >>= 16
        _instruction(0x61, 4, 1, offset=4),  # r4 = major
        _instruction(0x61, 5, 1, offset=8),  # r5 = minor
    ]
    for rule in allowed:
        refused = sum(bit for letter, bit in _ACCESS.items() if letter not in rule.access)
        tests: list[tuple[int, int, int]] = [(0x55, 2, _KINDS[rule.kind])]  # != : to the next rule
        if refused:
            tests.append((0x45, 3, refused))  # & : likewise
        tests += [(0x55, 4, rule.major)] if rule.major is not None else []
        tests += [(0x55, 5, rule.minor)] if rule.minor is not None else []
        for at, (operation, register, value) in enumerate(tests):
            # Over the other tests and the two that follow.
            code.append(_instruction(operation, register, offset=len(tests) - at + 1, immediate=value))
        code += [_instruction(0xB7, 0, immediate=1), _instruction(0x95)]
    return b"".join([*code, _instruction(0xB7, 0), _instruction(0x95)])


def _instruction(
    operation: int, target: int = 0, source: int = 0, *, offset: int = 0, immediate: int = 0
) -> bytes:
    registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
    return struct.pack("=BBhi", operation, registers, offset, immediate)


def _restrict_v2(directory: str, allowed: Sequence[Rule]) -> bool:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kernel.restrict_devices(fd, program(allowed))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise HostError(
                "restrict devices of", f"cgroup {directory}", error.strerror or str(error), error.errno
            ) from error
        log.info("devices are restricted by mounts, not by cgroup", reason=str(error))
        return False
    return True
