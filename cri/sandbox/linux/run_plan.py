"""The plan of a process's way into a container whose tree is there: the same for a start and for an exec (docs/launch.md).

Where somebody else's processes may see it, what is born there (after FORK) has given up everything. In a process namespace
that is new there is nobody yet, and the newcomer mounts its /proc first.
"""

from __future__ import annotations

import enum
import functools
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, MAX_DESCRIPTORS, Attach, Operation, Tolerate
from cri.sandbox.launcher.plan import Step, ready
from cri.sandbox.launcher.steps import at_path, bits, execute, groups, write
from cri.sandbox.linux import kernel, stated
from cri.sandbox.spec import Credentials, TerminalSize

_SYS_ADMIN = 1 << 21
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 8, 47, 4
_HARDENED = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
_PTY, _TERMINAL, _ROOT, _PROC, _SPARE, _CONSOLE = (
    FIRST_DESCRIPTOR + MAX_DESCRIPTORS + number for number in range(6)
)
"""Numbers of what the plan opens by itself, above all that come with it."""


class Processes(enum.Enum):
    """Which process namespace a process is born into."""

    NODE = enum.auto()
    NEW = enum.auto()
    SHARED = enum.auto()


@dataclass(frozen=True, slots=True)
class Filter:
    """A seccomp program."""

    instructions: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What a process on its way is to be. Descriptors are the warden's."""

    argv: Sequence[str]
    candidates: Sequence[str]
    env: dict[str, str]
    cwd: str
    credentials: Credentials
    drop: int
    """Capabilities that leave the bounding set, as a bit mask."""
    capabilities: int
    """What root keeps."""
    no_new_privileges: bool
    mounts: int
    """The mount namespace with the tree."""
    processes: Processes
    pids: int = -1
    """The process namespace, if that is shared."""
    cgroup_namespace: int = -1
    cgroups: Sequence[str] = ()
    """Files to write 0 to."""
    late_cgroups: Sequence[str] = ()
    oom_score: int | None = None
    stdio: tuple[int, int, int] | None = (-1, -1, -1)
    """-1 is the container's /dev/null; None: a new terminal."""
    terminal_size: TerminalSize | None = None
    console: bool = False
    """Whether the terminal is /dev/console, too."""
    null: int = -1
    """The container's /dev/null (O_PATH), which hides files: for a new process namespace."""
    masked_proc: Sequence[str] = ()
    readonly_proc: Sequence[str] = ()
    """What to hide, or to let nobody write to, of the new /proc."""
    in_proc: Sequence[tuple[int, str]] = ()
    """Volumes on files of the new /proc, as mounts that are nowhere."""
    seccomp: Filter | None = None


class _Descriptors:
    """Those that come with a plan, and their numbers there. The report is the first."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def number(self, descriptor: int) -> int:
        if descriptor < 0:
            return -1
        self.given.append(descriptor)
        return FIRST_DESCRIPTOR + len(self.given)


def init_plan(name: str, cgroups: Sequence[str] = ()) -> list[Step]:
    """The plan of a process that is 1 in a process namespace of its own, where it reaps. Its /proc is sent when it is that.

    `cgroups` are files to write 0 to.
    It goes where there is no file: what sees it may follow its /proc/PID/root.
    """
    empty = (b"tmpfs", b"size=4k", b"mode=555")
    return [
        *(write(path, "0", subject="join cgroup") for path in cgroups),
        Step(Operation.LEAVE, (kernel.CLONE_NEWCGROUP,), (), "make cgroup namespace"),
        Step(Operation.LEAVE, (kernel.CLONE_NEWPID,), (), "make process namespace"),
        Step(Operation.FORK, (), (), "fork"),
        Step(Operation.DEATH_SIGNAL, (signal.SIGKILL,), (), "bind to warden"),
        Step(Operation.SESSION, (), (), "make session"),
        Step(Operation.FILESYSTEM, (_SPARE, _HARDENED), (b"proc",), "make /proc"),
        Step(Operation.LEAVE, (kernel.CLONE_NEWNS,), (), "make mount namespace"),
        Step(
            Operation.MOUNT,
            (kernel.MS_REC | kernel.MS_SLAVE, Tolerate.NOTHING),
            (b"none", b"/", b"", b""),
            "leave the node's mounts",
        ),
        Step(
            Operation.FILESYSTEM, (_PROC, _HARDENED | kernel.MOUNT_ATTR_RDONLY), empty, "make an empty root"
        ),
        at_path(Operation.OPEN, (_ROOT, os.O_PATH | os.O_DIRECTORY), "/"),
        at_path(Operation.ATTACH, (_PROC, _ROOT, Attach.DIRECTORY | Attach.KEEP), "/proc"),
        Step(Operation.PIVOT, (_PROC,), (), "enter an empty root"),
        Step(Operation.BOUNDING, (bits(kernel.bounding_capabilities()),), (), "drop capabilities"),
        Step(Operation.CAPABILITIES, (0, 0, 0), (), "drop capabilities"),
        Step(Operation.SEND, (_SPARE,), (), "send /proc"),
        Step(Operation.REAP, (), (name.encode(),), "reap"),
    ]


def plan(run: Run) -> tuple[list[Step], list[int]]:
    """The steps, and the descriptors that go with them. What is sent: the pty if there is one, and a /proc if that is new."""
    descriptors = _Descriptors()
    if run.processes is Processes.NEW:
        steps = [
            *_enter(run, descriptors),
            Step(Operation.FORK, (), (), "fork"),
            *_mount_proc(run, descriptors),
            *_give_up(run),
        ]
    else:
        steps = [
            *_enter(run, descriptors),
            *_give_up(run),
            Step(Operation.FORK, (), (), "fork"),
        ]
    return [*steps, *_become(run)], descriptors.given


def _enter(run: Run, descriptors: _Descriptors) -> list[Step]:
    """What takes the node's /proc, or the warden's rights."""
    steps = [write(path, "0", subject="join cgroup") for path in run.cgroups]
    steps += [write(path, "0", Tolerate.NOT_YET, "join cgroup") for path in run.late_cgroups]
    if run.oom_score is not None:  # needs SYS_RESOURCE to be lowered; do without
        steps.append(write("/proc/self/oom_score_adj", str(run.oom_score), Tolerate.ALL))
    steps += stated.steps(raised=stated.may_raise())
    if run.cgroup_namespace >= 0:
        steps.append(_namespace("cgroup", descriptors.number(run.cgroup_namespace), kernel.CLONE_NEWCGROUP))
    if run.processes is Processes.NEW:
        steps.append(Step(Operation.LEAVE, (kernel.CLONE_NEWPID,), (), "make process namespace"))
    elif run.processes is Processes.SHARED:
        steps.append(_namespace("process", descriptors.number(run.pids), kernel.CLONE_NEWPID))
    steps.append(_namespace("mount", descriptors.number(run.mounts), kernel.CLONE_NEWNS))
    return [*steps, *_streams(run, descriptors)]


def _namespace(what: str, descriptor: int, kind: int) -> Step:
    return Step(Operation.ENTER, (descriptor, kind), (), f"enter {what} namespace")


def _streams(run: Run, descriptors: _Descriptors) -> list[Step]:
    owner = run.credentials.uid
    if run.stdio is not None:
        given = [descriptors.number(one) for one in run.stdio]
        return [Step(Operation.STREAMS, (*given, owner), (), "use standard streams")]
    size = run.terminal_size or TerminalSize(0, 0)
    shape = (_PTY, _TERMINAL, owner, min(size.height, 0xFFFF), min(size.width, 0xFFFF))
    steps = [
        Step(Operation.TERMINAL, shape, (), "make terminal"),
        Step(Operation.SEND, (_PTY,), (), "pass on the terminal"),
        Step(Operation.STREAMS, (_TERMINAL, _TERMINAL, _TERMINAL, owner), (), "use standard streams"),
    ]
    if run.console:
        # What is there already is not opened: that may be the node's console, in a volume.
        root = at_path(Operation.OPEN, (_ROOT, os.O_PATH | os.O_DIRECTORY), "/")
        clone = Step(Operation.CLONE_OF, (_CONSOLE, _TERMINAL, 0), (), "make /dev/console")
        steps += [root, clone, at_path(Operation.ATTACH, (_CONSOLE, _ROOT, Attach.MAKE), "/dev/console")]
    return steps


def _mount_proc(run: Run, descriptors: _Descriptors) -> list[Step]:
    null = descriptors.number(run.null)
    return [
        at_path(Operation.OPEN, (_ROOT, os.O_PATH | os.O_DIRECTORY), "/"),
        Step(Operation.FILESYSTEM, (_PROC, _HARDENED), (b"proc",), "make /proc"),
        at_path(
            Operation.ATTACH,
            (_PROC, _ROOT, Attach.DIRECTORY | Attach.MAKE | Attach.KEEP),
            "/proc",
            "mount /proc",
        ),
        # For who is to see these processes later: only a member of their namespace can make one. Not a clone of that above: who
        # is in another mount namespace could not clone it again.
        Step(Operation.FILESYSTEM, (_SPARE, _HARDENED), (b"proc",), "make /proc"),
        Step(Operation.SEND, (_SPARE,), (), "send /proc"),
        *(
            at_path(
                Operation.ATTACH, (descriptors.number(tree), _ROOT, Attach.LIKE), path, f"mount on {path}"
            )
            for tree, path in run.in_proc
        ),
        *(
            at_path(Operation.MASK, (_ROOT, null, _HARDENED | kernel.MOUNT_ATTR_RDONLY), path)
            for path in run.masked_proc
        ),
        *(at_path(Operation.RESTRICT, (_ROOT, kernel.MOUNT_ATTR_RDONLY), path) for path in run.readonly_proc),
    ]


def _give_up(run: Run) -> list[Step]:
    """All that the program must not have. Each step needs what later ones give up."""
    user = run.credentials
    kept = bits(run.capabilities if user.uid == 0 else 0)
    steps = [
        # Before the working directory: the container may have made that a link to one of them, /proc/self/fd/N.
        Step(Operation.CLOSE, (-1,), (), "close descriptors"),
        at_path(Operation.WORKING_DIRECTORY, (0,), run.cwd, "chdir"),
        Step(Operation.BOUNDING, (bits(run.drop),), (), "drop capabilities"),
        groups(user.groups),
        # Is handed down at birth. A filter may come next, and must be in the way of as little as can be.
        Step(Operation.SIGNALS, (), (), "reset signals"),
    ]
    early = None if run.no_new_privileges else run.seccomp
    if early is not None:
        steps.append(_control("keep capabilities", _PR_SET_KEEPCAPS, 1))
    steps += [
        Step(Operation.IDS, (user.uid, user.gid), (), "set user"),
        _control("clear ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL),
    ]
    if early is not None:
        raised = kept | _SYS_ADMIN  # without no_new_privs, a filter takes that: seccomp(2)
        steps += [
            Step(Operation.CAPABILITIES, (raised, raised, 0), (), "set capabilities"),
            _install(early),
            _control("let go of capabilities", _PR_SET_KEEPCAPS, 0),
        ]
    # Another user gains none by exec: no inheritable, no ambient ones.
    steps.append(Step(Operation.CAPABILITIES, (kept, kept, 0), (), "set capabilities"))
    if run.no_new_privileges:
        steps.append(Step(Operation.NO_NEW_PRIVILEGES, (), (), "set no_new_privs"))
    return steps


def _become(run: Run) -> list[Step]:
    """What only the process itself can do. Takes no capability."""
    steps = [Step(Operation.SESSION, (), (), "make session")]
    if run.stdio is None:
        steps.append(Step(Operation.CONTROLLING_TERMINAL, (), (), "take terminal"))
    steps += [
        # After the user was set, which clears it.
        Step(Operation.DEATH_SIGNAL, (signal.SIGKILL,), (), "bind to warden"),
    ]
    if run.seccomp is not None and run.no_new_privileges:
        steps.append(_install(run.seccomp))
    return [*steps, execute(run.candidates, run.argv, run.env)]


@functools.lru_cache(maxsize=16)
def _install(seccomp: Filter) -> Step:
    """The step that installs a filter: the same for every process of a container."""
    program = seccomp.instructions
    operands = (seccomp.flags, len(program) // 8)
    return ready(Step(Operation.SECCOMP, operands, (program,), "install seccomp filter"))


def _control(what: str, option: int, value: int) -> Step:
    return Step(Operation.CONTROL, (option, value, 0, 0, 0, Tolerate.NOTHING), (), what)
