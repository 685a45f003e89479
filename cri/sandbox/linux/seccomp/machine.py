"""What a profile may depend on besides the container: processor and kernel."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_SPELLINGS = """
    x86 x86_64 x32 arm aarch64 mips mips64 mips64n32 mipsel mipsel64 mipsel64n32 ppc ppc64 ppc64le s390 s390x parisc parisc64
    riscv64 loongarch64 m68k sh sheb
"""
ARCHITECTURES = frozenset(_SPELLINGS.split())
"""SCMP_ARCH_* of the OCI, as libseccomp spells them."""

# What uname(2) calls it: what Go calls it, what libseccomp calls it, and whose programs its kernel runs, too.
_MACHINES = {
    "x86_64": ("amd64", "x86_64", ("x86", "x32")),
    "aarch64": ("arm64", "aarch64", ("arm",)),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor, and the kernel that runs on it."""

    go_name: str
    """As profiles spell it in `arches`."""
    native: str
    others: tuple[str, ...] = ()
    """Further architectures whose calls this kernel may answer."""
    kernel: tuple[int, int] = (0, 0)


def this() -> Machine:
    """The one that this runs on."""
    system = os.uname()
    go_name, native, others = _MACHINES.get(system.machine, (system.machine, system.machine, ()))
    found = re.match(r"(\d+)\.(\d+)", system.release)
    return Machine(go_name, native, others, (int(found[1]), int(found[2])) if found else (0, 0))
