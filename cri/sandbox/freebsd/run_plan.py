"""The plans of FreeBSD (docs/launch.md): a process's way into a jail, the same for a start and for an exec; and errands.

An errand is something that has to be asked from within a jail. The jails and their mounts are there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, MAX_DESCRIPTORS, Operation, Tolerate
from cri.sandbox.launcher.plan import Step, ready
from cri.sandbox.launcher.steps import at_path, execute, groups
from cri.sandbox.spec import Credentials, TerminalSize

UMASK = 0o022
_INFINITY = -1
# setrlimit(2), by number: as the class `default` of login.conf(5) has them. What the kernel bounds, it bounds.
_LIMITS = dict.fromkeys(range(16), (_INFINITY, _INFINITY)) | {
    6: (64 << 20, 64 << 20),  # MEMLOCK
}
_RTP_PRIO_NORMAL = 3
# procctl(2): what one sets for itself and hands down. "Neither forced nor forbidden".
_CONTROLS = (
    ("address randomisation", 13, 3),  # PROC_ASLR_CTL, PROC_ASLR_NOFORCE
    ("maximum protection", 15, 3),  # PROC_PROTMAX_CTL, PROC_PROTMAX_NOFORCE
    # PROC_STACKGAP_CTL, PROC_STACKGAP_ENABLE_EXEC. Not PROC_STACKGAP_ENABLE: what has none cannot have one before it executes.
    ("stack gap", 17, 4),
    # (PROC_WXMAP_CTL can forbid or permit for good, whatever the system says, and not take that back.)
    ("logging of fatal signals", 23, 1),  # PROC_LOGSIGEXIT_CTL, PROC_LOGSIGEXIT_CTL_NOFORCE
    ("signals in capability mode", 9, 2),  # PROC_TRAPCAP_CTL, PROC_TRAPCAP_CTL_DISABLE
    # PROC_SPROTECT, PPROT_CLEAR: protect(1) -i, or NAME_oomprotect="ALL" in rc.conf(5)
    ("protection from lack of memory", 1, 2),
    # Of amd64, kept for the next exec: PROC_KPTI_CTL_ENABLE_ON_EXEC, where the kernel has that, and PROC_LA_CTL_DEFAULT_ON_EXEC
    ("page table isolation", 0x10000000, 1),
    ("address length", 0x10000002, 3),
)
_PTY, _TERMINAL, _OPENED = (FIRST_DESCRIPTOR + MAX_DESCRIPTORS + number for number in range(3))
"""Numbers of what a plan opens by itself, above all that come with it."""
_UNSEEN = (
    ready(Step(Operation.UNTRACEABLE, (), (), "refuse to be traced")),
    ready(Step(Operation.SIGNALS, (), (), "reset signals")),
)
_STATED = tuple(
    map(
        ready,
        (
            *(
                Step(Operation.RESOURCE_LIMIT, (number, *both), (), f"set resource limit {number}")
                for number, both in _LIMITS.items()
            ),
            Step(Operation.PRIORITY, (0,), (), "set nice"),
            Step(Operation.REALTIME_PRIORITY, (_RTP_PRIO_NORMAL, 0), (), "set scheduling class"),
            Step(Operation.UMASK, (UMASK,), (), "set umask"),
            Step(Operation.AFFINITY, (), (b"",), "set CPU affinity"),
            Step(Operation.MEMORY_POLICY, (), (), "set memory policy"),
            Step(Operation.AUDIT, (), (), "leave audit session"),
            Step(Operation.LOGIN_CLASS, (), (b"default",), "set login class"),
            Step(Operation.LOGIN_NAME, (), (b"root",), "set login name"),
            *(
                Step(Operation.PROCESS_CONTROL, (command, value, Tolerate.ALL), (), f"set {what}")
                for what, command, value in _CONTROLS
            ),
        ),
    )
)
"""What a process inherits by fork and exec, as a container's processes get it. Takes the node's root."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a process on its way is to be. Descriptors are the warden's, and none is a directory's: jail_attach(2)."""

    argv: Sequence[str]
    candidates: Sequence[str]
    env: dict[str, str]
    cwd: str
    credentials: Credentials
    jid: int
    fib: int
    no_new_privileges: bool
    stdio: tuple[int, int, int] | None = (-1, -1, -1)
    """-1 is the container's /dev/null; None: a new terminal."""
    terminal_size: TerminalSize | None = None


def plan(run: Run) -> tuple[list[Step], list[int]]:
    """The steps, and the descriptors that go with them."""
    given: list[int] = []
    user = run.credentials
    steps = [
        Step(Operation.FORK, (), (), "fork"),
        *_UNSEEN,
        Step(Operation.SESSION, (), (), "make session"),
        *_STATED,
        Step(Operation.ROUTING_TABLE, (run.fib,), (), f"use routing table {run.fib}"),
        # Before: nobody inside is to see the warden's. First the effective one, as before FreeBSD 15: setgroups(2).
        groups((user.gid, *(one for one in user.groups if one != user.gid))),
        _enter(run.jid),
        *_streams(run, given),
        Step(Operation.CLOSE, (-1,), (), "close descriptors"),
        at_path(Operation.WORKING_DIRECTORY, (1,), run.cwd, "chdir"),
        Step(Operation.IDS, (user.uid, user.gid), (), "set user"),
    ]
    if run.no_new_privileges:
        steps.append(Step(Operation.NO_NEW_PRIVILEGES, (), (), "set no new privileges"))
    steps.append(Step(Operation.DEATH_SIGNAL, (signal.SIGKILL,), (), "bind to warden"))
    return [*steps, execute(run.candidates, run.argv, run.env)], given


def errand(jid: int, steps: Iterable[Step]) -> list[Step]:
    """Steps to be taken in a jail by a process that then ends; the numbers that they give to what they open are theirs."""
    return [*_UNSEEN, _enter(jid), *steps]


def send_files(paths: Sequence[str], most: int) -> list[Step]:
    """Copies of these files, up to so many bytes of each; empty for what is no file."""
    steps = []
    for number, path in enumerate(paths, _OPENED):
        steps += [
            at_path(Operation.COPY, (number, -1, most), path, f"read {path}"),
            Step(Operation.SEND, (number,), (), f"pass on {path}"),
        ]
    return steps


def send_socket(family: int, type_: int, protocol: int) -> list[Step]:
    """A new socket."""
    return [
        Step(Operation.SOCKET, (_OPENED, family, type_, protocol), (), "make socket"),
        Step(Operation.SEND, (_OPENED,), (), "pass on the socket"),
    ]


def send_variable(name: str, value: bytes | None) -> list[Step]:
    """What a variable of sysctl(3) is, before it is set to a value."""
    texts = (os.fsencode(name),) if value is None else (os.fsencode(name), value)
    return [
        Step(Operation.SYSCTL, (_OPENED,), texts, f"sysctl {name}"),
        Step(Operation.SEND, (_OPENED,), (), "pass on the value"),
    ]


def _enter(jid: int) -> Step:
    return Step(Operation.JAIL, (jid,), (), f"enter jail {jid}")


def _streams(run: Run, given: list[int]) -> list[Step]:
    owner = run.credentials.uid
    if run.stdio is not None:
        numbers = []
        for descriptor in run.stdio:
            if descriptor >= 0:
                given.append(descriptor)
            numbers.append(FIRST_DESCRIPTOR + len(given) if descriptor >= 0 else -1)
        return [Step(Operation.STREAMS, (*numbers, owner), (), "use standard streams")]
    size = run.terminal_size or TerminalSize(0, 0)
    shape = (_PTY, _TERMINAL, owner, min(size.height, 0xFFFF), min(size.width, 0xFFFF))
    return [
        Step(Operation.TERMINAL, shape, (), "make terminal"),
        Step(Operation.SEND, (_PTY,), (), "pass on the terminal"),
        Step(Operation.STREAMS, (_TERMINAL, _TERMINAL, _TERMINAL, owner), (), "use standard streams"),
        Step(Operation.CONTROLLING_TERMINAL, (), (), "take terminal"),
    ]
