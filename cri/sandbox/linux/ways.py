"""How a container's first process, and others beside it, get there: by which plans, one after the other."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from cri.sandbox.host import HostError, StartError, UnfitRequestError
from cri.sandbox.launcher.operations import FIRST_DESCRIPTOR, Operation
from cri.sandbox.launcher.plan import Step
from cri.sandbox.linux import build_plan, capabilities, filters, run_plan
from cri.sandbox.linux.build_plan import ACCOUNT_FILES, NODE_PROC, Builder
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.run_plan import Processes, Run
from cri.sandbox.places import IN_PROC
from cri.sandbox.spec import ProcessSpec
from cri.sandbox.warden import accounts, launch, users
from cri.sandbox.warden.driver import Plan, Target
from cri.sandbox.warden.launch import Report, Stdio
from cri.sandbox.warden.launching import Pause, Sent, Stage, StepFailedError, Way

Reported = Callable[[Report], None]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a pod's containers share."""

    hostname: str
    shared_memory: int | str
    pids: int | None = None
    """The process namespace to be born into, open: the way's, which closes it. None: the container's own, or the node's."""
    proc: int | None = None
    """Its /proc, a mount that is nowhere: the way's, which closes it. NODE_PROC with the node's processes."""
    keep_proc: Callable[[int], None] = os.close
    """Gets the /proc of a namespace of the container's own: whose it is from then on."""


def start(plan: Plan, stdio: Stdio, pod: Surroundings, reported: Reported) -> Way:
    """A container's first process. Raises HostError."""
    group = _group(plan)
    with contextlib.ExitStack() as opened:
        for descriptor in (pod.pids, pod.proc):
            if descriptor is not None and descriptor != NODE_PROC:
                opened.callback(os.close, descriptor)
        found = yield from _build(plan, group, pod)
        for descriptor in found.values():
            opened.callback(os.close, descriptor)
        processes = (
            Processes.NEW if pod.proc is None else Processes.NODE if pod.pids is None else Processes.SHARED
        )
        files = {path: found[path] for path in ACCOUNT_FILES}
        report = Report(*users.resolve(plan.spec.process.user, accounts.read_copies(files)))
        security = plan.spec.security
        known = _run(
            plan,
            plan.spec.process,
            stdio,
            report,
            hostname=pod.hostname,
            mounts=found["mounts"],
            processes=processes,
        )
        run = replace(
            known,
            cgroup_namespace=found["cgroup"],
            pids=-1 if pod.pids is None else pod.pids,
            cgroups=tuple(group.join_files(born=True)),
            late_cgroups=tuple(group.late_join_files()),
            oom_score=plan.spec.resources.oom_score_adj or 0,  # the warden's own must not be inherited
            console=stdio.tty,
            null=found["null"],
            masked_proc=tuple(filter(build_plan.is_of_proc, security.masked_paths)),
            readonly_proc=tuple(filter(build_plan.is_of_proc, security.readonly_paths)),
            in_proc=[(tree, path) for path, tree in found.items() if path in IN_PROC],
        )
        sent = yield from _go(run, group, plan.spec.process, plan)
        if processes is Processes.NEW:
            pod.keep_proc(sent.pop())
    reported(Report(report.credentials, report.home, sent[0] if sent else None))


def exec_(
    target: Target,
    process: ProcessSpec,
    stdio: Stdio,
    group: Group,
    *,
    hostname: str,
    oom_score: int | None,
    reported: Reported,
) -> Way:
    """A process beside a container's first. `group` is what it joins. Raises HostError."""
    namespaces = f"/proc/{target.first}/ns"
    with contextlib.ExitStack() as opened:

        def enter(kind: str) -> int:
            fd = os.open(f"{namespaces}/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            return fd

        known = _run(
            target.plan,
            process,
            stdio,
            target.report,
            hostname=hostname,
            mounts=enter("mnt"),
            processes=Processes.SHARED,
        )
        run = replace(
            known,
            pids=enter("pid"),
            cgroup_namespace=enter("cgroup"),
            cgroups=tuple(group.join_files(born=True)),
            late_cgroups=tuple(group.late_join_files()),
            oom_score=oom_score,
        )
        sent = yield from _go(run, group, process, target.plan)
    reported(Report(target.report.credentials, target.report.home, sent[0] if sent else None))


def _build(plan: Plan, group: Group, pod: Surroundings) -> Generator[Stage | Pause, Sent, dict[str, int]]:
    """The tree: its descriptors by name."""
    joined = tuple(group.join_files(born=True))
    built = Builder(plan, group.shown, group.version, pod.shared_memory, joined, pod.proc).build()
    try:
        with born_in(group, built.steps, built.descriptors) as stage:
            sent = yield stage
    except StepFailedError as error:
        for descriptor in error.sent:
            os.close(descriptor)
        raise _not_built(error) from error
    return dict(zip(built.sent, sent, strict=True))


def _run(
    plan: Plan,
    process: ProcessSpec,
    stdio: Stdio,
    report: Report,
    *,
    hostname: str,
    mounts: int,
    processes: Processes,
) -> Run:
    """What it is to be, but for where it is."""
    spec = plan.spec
    env = launch.environment_of(spec, process, home=report.home, hostname=hostname)
    keep, drop = capabilities.possible(capabilities.wanted(spec.security))
    streams = [-1 if fd is None else fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
    return Run(
        argv=process.argv,
        candidates=launch.candidates(process.argv, env),
        env=env,
        cwd=spec.process.cwd or "/",  # an exec's too: the CRI gives it none of its own
        credentials=report.credentials,
        drop=drop,
        capabilities=keep,
        no_new_privileges=spec.security.no_new_privileges,
        mounts=mounts,
        processes=processes,
        stdio=None if stdio.tty else (streams[0], streams[1], streams[2]),
        terminal_size=process.terminal_size,
        seccomp=filters.recorded(plan.host),
    )


@contextlib.contextmanager
def born_in(group: Group, steps: Sequence[Step], descriptors: Sequence[int]) -> Iterator[Stage]:
    """A stage whose processes are born in a group's part of version 2, if it has one. Raises HostError."""
    if group.unified is None:
        yield Stage(steps, descriptors)
        return
    try:
        directory = os.open(group.unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError("join", f"cgroup {group.unified}", error.strerror or "", error.errno) from error
    try:
        place = FIRST_DESCRIPTOR + 1 + len(descriptors)
        first = Step(Operation.BORN_IN, (place,), (), f"join cgroup {group.unified}")
        yield Stage([first, *steps], [*descriptors, directory])
    finally:
        os.close(directory)


def _go(run: Run, group: Group, process: ProcessSpec, plan: Plan) -> Generator[Stage | Pause, Sent, Sent]:
    """The process: what it has sent."""
    steps, descriptors = run_plan.plan(run)
    try:
        with born_in(group, steps, descriptors) as stage:
            sent = yield stage
    except StepFailedError as error:
        for descriptor in error.sent:
            os.close(descriptor)
        raise _not_started(error, process, plan) from error
    return sent


def _not_built(error: StepFailedError) -> HostError:
    step, reason = error.step, error.reason
    if step is None:
        return HostError("start", "the process", reason, error.errno)
    if step.operation is Operation.ATTACH and error.errno == errno.EXDEV:
        target = os.fsdecode(step.texts[0] or b"")
        return UnfitRequestError(
            "mount on", target, "it leads to the root, or into /proc, in this image; mount elsewhere"
        )
    if step.operation is Operation.NODE and error.errno == errno.EPERM:
        reason += "; device nodes cannot be made in a user namespace: run cri-jails outside of one"
    operation, _, subject = step.subject.partition(" ")
    kind = UnfitRequestError if step.operation is Operation.OPEN_IN else HostError
    return kind(operation, subject, reason, error.errno)


def _not_started(error: StepFailedError, process: ProcessSpec, plan: Plan) -> HostError:
    step, reason = error.step, error.reason
    if step is None:
        return HostError("start", "the process", reason, error.errno)
    if step.operation is Operation.EXECUTE:
        return launch.not_executed(process.argv, error.errno)
    if step.operation is Operation.WORKING_DIRECTORY:
        return StartError("chdir to", f'"{plan.spec.process.cwd}"', reason.lower(), error.errno)
    return StartError("start", f'"{process.argv[0]}"', f"{step.subject}: {reason}", error.errno)


def _group(plan: Plan) -> Group:
    return Group.noted(plan.host["cgroup"])
