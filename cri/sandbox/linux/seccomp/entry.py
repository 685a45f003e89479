"""What the way into a container takes once its filter is there: a profile that forbids it lets nothing start.

By `cri.sandbox.linux.run_plan`: with no_new_privs the filter comes last; without, the kernel wants a capability for it, which
has to be given up before a process is born that the container may see.
"""

from __future__ import annotations

from collections.abc import Sequence

from cri.sandbox.linux.run_plan import Filter
from cri.sandbox.linux.seccomp import bpf, library
from cri.sandbox.linux.seccomp.machine import Machine
from cri.sandbox.linux.seccomp.profile import Kind

ALWAYS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("execve", ()),
    ("write", (64, 0, 16)),
    ("exit_group", (1,)),
)
WITHOUT_NO_NEW_PRIVILEGES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("prctl", (8, 0)),  # PR_SET_KEEPCAPS
    ("capset", ()),
    ("clone", (0x8000 | 17,)),  # CLONE_PARENT | SIGCHLD
    ("setsid", ()),
    ("prctl", (1, 9)),  # PR_SET_PDEATHSIG
    ("ppoll", (0, 1)),
)
_ANSWER = 0xFFFF0000
_THROUGH = (Kind.ALLOW, Kind.LOG)


def forbidden(filter_: Filter, machine: Machine, *, no_new_privileges: bool) -> Sequence[str]:
    """The calls of the way in that a filter does not let through, in order. Raises LibraryError."""
    native = library.architecture(machine.native)
    needed = ALWAYS if no_new_privileges else (*WITHOUT_NO_NEW_PRIVILEGES, *ALWAYS)
    shut = [
        name
        for name, arguments in needed
        if bpf.run(filter_.instructions, native, library.number(native, name), arguments) & _ANSWER
        not in _THROUGH
    ]
    return list(dict.fromkeys(shut))
