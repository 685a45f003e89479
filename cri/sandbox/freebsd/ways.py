"""How a container's first process, and others beside it, get into its jail: by which plans (docs/launch.md)."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence

from cri.sandbox.freebsd import run_plan
from cri.sandbox.freebsd.run_plan import Run
from cri.sandbox.host import HostError, StartError
from cri.sandbox.launcher.operations import Operation
from cri.sandbox.launcher.plan import Step
from cri.sandbox.spec import ProcessSpec
from cri.sandbox.warden import accounts, launch, users
from cri.sandbox.warden.driver import Plan, Reported, Target
from cri.sandbox.warden.launch import Report, Stdio
from cri.sandbox.warden.launching import Pause, Sent, Stage, StepFailedError, Way

_ACCOUNT_FILES = ("/etc/passwd", "/etc/group")


def start(plan: Plan, stdio: Stdio, hostname: str, reported: Reported) -> Way:
    """A container's first process. Raises HostError."""
    process = plan.spec.process
    # Copied by a process of the jail: a volume may keep it waiting, and from there links lead nowhere else.
    files = run_plan.send_files(_ACCOUNT_FILES, accounts.MAX_FILE + 1)
    sent = yield from _go(run_plan.errand(plan.host["jid"], files), (), process, plan)
    try:
        copies = dict(zip(_ACCOUNT_FILES, sent, strict=True))
        found = users.resolve(process.user, accounts.read_copies(copies))
    finally:
        _close(sent)
    yield from _run(plan, process, stdio, Report(*found), hostname, reported)


def exec_(target: Target, process: ProcessSpec, stdio: Stdio, hostname: str, reported: Reported) -> Way:
    """A process beside a container's first, as whose user it runs. Raises HostError."""
    yield from _run(target.plan, process, stdio, target.report, hostname, reported)


def _run(
    plan: Plan, process: ProcessSpec, stdio: Stdio, report: Report, hostname: str, reported: Reported
) -> Way:
    """The process itself."""
    spec = plan.spec
    env = launch.environment_of(spec, process, home=report.home, hostname=hostname)
    streams = [-1 if fd is None else fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
    run = Run(
        argv=process.argv,
        candidates=launch.candidates(process.argv, env),
        env=env,
        cwd=spec.process.cwd or "/",  # an exec's too: the CRI gives it none of its own
        credentials=report.credentials,
        jid=plan.host["jid"],
        fib=plan.host["fib"],
        no_new_privileges=spec.security.no_new_privileges,
        stdio=None if stdio.tty else (streams[0], streams[1], streams[2]),
        terminal_size=process.terminal_size,
    )
    sent = yield from _go(*run_plan.plan(run), process, plan)
    reported(Report(report.credentials, report.home, sent[0] if sent else None))


def _go(
    steps: Sequence[Step], descriptors: Sequence[int], process: ProcessSpec, plan: Plan
) -> Generator[Stage | Pause, Sent, Sent]:
    """What has been sent by one stage."""
    try:
        sent = yield Stage(steps, descriptors)
    except StepFailedError as error:
        _close(error.sent)
        raise _not_started(error, process, plan) from error
    return sent


def _not_started(error: StepFailedError, process: ProcessSpec, plan: Plan) -> HostError:
    step, reason = error.step, error.reason
    if step is None:
        return HostError("start", "the process", reason, error.errno or None)
    if step.operation is Operation.EXECUTE:
        return launch.not_executed(process.argv, error.errno)
    if step.operation is Operation.WORKING_DIRECTORY:
        return StartError("chdir to", f'"{plan.spec.process.cwd}"', reason.lower(), error.errno)
    if step.operation is Operation.STREAMS and error.errno == errno.ENODEV:
        return StartError(
            "open", '"/dev/null"', "it is no device: a volume hides that of the container", error.errno
        )
    return HostError("prepare", "the process", f"{step.subject}: {reason}", error.errno)


def _close(descriptors: Sent) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
