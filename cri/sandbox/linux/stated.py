"""What a process inherits by fork and exec, and the value of each that a container's processes get (docs/inherited.md).

A container begins from these, whatever shell, service manager or limit the daemon was started with.
"""

from __future__ import annotations

import functools
import resource
from pathlib import Path

from cri.sandbox.launcher.operations import Operation, Tolerate
from cri.sandbox.launcher.plan import Step, ready
from cri.sandbox.launcher.steps import write
from cri.sandbox.linux import kernel

UMASK = 0o022
TIMER_SLACK = 50_000
"""Nanoseconds: what the kernel gives to init. prctl(2), PR_SET_TIMERSLACK."""
KEYRING = 0x3F0B0000
"""Of a container's session keyring: the possessor may do everything; the user may view, read and search it. keyctl(2)."""
_CPUS = b"\xff" * 1024
"""More than there are; what is there and in the cpuset counts. sched_setaffinity(2)."""
_COREDUMP_FILTER = "0x33"
"""core(5)."""
_NO_LOGIN = str(2**32 - 1)

_INFINITY = resource.RLIM_INFINITY
_MIB = 1 << 20
# Those of the kernel's init (include/asm-generic/resource.h), by number; open files as service managers have them.
_LIMITS = {
    0: (_INFINITY, _INFINITY),  # CPU
    1: (_INFINITY, _INFINITY),  # FSIZE
    2: (_INFINITY, _INFINITY),  # DATA
    3: (8 * _MIB, _INFINITY),  # STACK
    4: (0, _INFINITY),  # CORE
    5: (_INFINITY, _INFINITY),  # RSS
    7: (1024, 524288),  # NOFILE
    8: (8 * _MIB, 8 * _MIB),  # MEMLOCK
    9: (_INFINITY, _INFINITY),  # AS
    10: (_INFINITY, _INFINITY),  # LOCKS
    12: (819200, 819200),  # MSGQUEUE
    13: (0, 0),  # NICE
    14: (0, 0),  # RTPRIO
    15: (_INFINITY, _INFINITY),  # RTTIME
}
_SYS_RESOURCE = 1 << 24
_NPROC, _SIGPENDING = 6, 11

# prctl(2): what one sets for itself and hands down. Not every kernel and processor has each; what it has not, it has not set.
_CONTROLS = (
    ("huge pages", 41, 0),  # PR_SET_THP_DISABLE
    ("machine check policy", 33, 0),  # PR_MCE_KILL, PR_MCE_KILL_CLEAR
    ("I/O flusher", 57, 0),  # PR_SET_IO_FLUSHER
    ("time stamp counter", 26, 1),  # PR_SET_TSC, PR_TSC_ENABLE
    ("memory merging", 67, 0),  # PR_SET_MEMORY_MERGE
    # PR_SET_SPECULATION_CTRL: PR_SPEC_ENABLE where that may be chosen; of the last, that is no flush
    ("speculation of stores", 53, 0, 2),
    ("speculation of indirect branches", 53, 1, 2),
    ("flush of the L1 cache", 53, 2, 4),
    # PR_SVE_SET_VL, PR_SME_SET_VL: not for longer than to the next exec, which gives the default
    ("vector length", 50, 16),
    ("streaming vector length", 63, 16),
    # PR_SCHED_CORE, PR_SCHED_CORE_SHARE_FROM: as the node's first process, which has none
    ("core scheduling", 62, 3, 1, 0),
)
_PR_SET_TIMERSLACK, _PR_SET_SECUREBITS = 29, 28


@functools.cache
def may_raise() -> bool:
    """Whether this process may raise hard limits; nested nodes lack that."""
    return bool(kernel.permitted_capabilities() & _SYS_RESOURCE)


def limits(*, raised: bool) -> dict[int, tuple[int, int]]:
    """Soft and hard limit by the resource's number; not above this process's own, unless it may raise them (SYS_RESOURCE)."""
    threads = int(Path("/proc/sys/kernel/threads-max").read_text()) // 2
    wanted = _LIMITS | {_NPROC: (threads, threads), _SIGPENDING: (threads, threads)}
    if raised:
        return wanted
    found = {}
    for number, (soft, hard) in wanted.items():
        most = resource.getrlimit(number)[1]
        found[number] = (_lower(soft, most), _lower(hard, most))
    return found


@functools.cache
def steps(*, raised: bool) -> tuple[Step, ...]:
    """All that needs neither the container's root nor its user. The node's /proc is there."""
    return tuple(map(ready, _steps(raised=raised)))


def kept(status: str) -> list[str]:
    """What of a process (its /proc/PID/status) no plan can take back, so that its containers have it too."""
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    found = []
    if values.get("NoNewPrivs", "0") != "0":
        found.append("no_new_privs, so set-user-ID programs and file capabilities have no effect")
    if values.get("Seccomp", "0") != "0":
        found.append("a seccomp filter, which denies containers what it denies the daemon")
    if "force mitigated" in values.get("Speculation_Store_Bypass", ""):
        found.append("disabled speculation of stores, which makes programs slower")
    return found


def _steps(*, raised: bool) -> list[Step]:
    return [
        *(
            Step(Operation.RESOURCE_LIMIT, (number, *both), (), f"set resource limit {number}")
            for number, both in sorted(limits(raised=raised).items())
        ),
        Step(Operation.SCHEDULER, (0, 0), (), "set scheduling policy"),
        Step(Operation.AFFINITY, (), (_CPUS,), "set CPU affinity"),
        Step(Operation.IO_PRIORITY, (0,), (), "set I/O priority"),
        Step(Operation.MEMORY_POLICY, (), (), "set memory policy"),
        Step(Operation.PERSONALITY, (0,), (), "set personality"),
        Step(Operation.UMASK, (UMASK,), (), "set umask"),
        _control("timer slack", _PR_SET_TIMERSLACK, TIMER_SLACK),
        _control("securebits", _PR_SET_SECUREBITS, 0),
        *(_control(what, *given, tolerate=Tolerate.ALL) for what, *given in _CONTROLS),
        write("/proc/self/coredump_filter", _COREDUMP_FILTER, Tolerate.ALL),
        write("/proc/self/loginuid", _NO_LOGIN, Tolerate.ALL),
        Step(Operation.JOIN_KEYRING, (KEYRING,), (), "join a new session keyring"),
    ]


def _control(what: str, *given: int, tolerate: Tolerate = Tolerate.NOTHING) -> Step:
    arguments = (*given, 0, 0, 0, 0)[:5]
    return Step(Operation.CONTROL, (*arguments, tolerate), (), f"set {what}")


def _lower(wanted: int, most: int) -> int:
    if most == _INFINITY:
        return wanted
    return most if wanted == _INFINITY else min(wanted, most)
