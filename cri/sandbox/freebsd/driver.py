"""The FreeBSD side of a warden: the way of a new process into its jail.

The warden itself stays outside of every jail, as the reaper of all that it starts (procctl(2)): what a container's
processes orphan comes back to it, whatever they do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterable, Sequence

from cri.sandbox.freebsd import jails, kernel, run_plan, sysctls, ways
from cri.sandbox.freebsd.launcher import Launcher, open_program
from cri.sandbox.host import HostError
from cri.sandbox.launcher.client import Kind, receive
from cri.sandbox.launcher.plan import PlanError, Step
from cri.sandbox.spec import ProcessSpec, SandboxSpec, Sharing
from cri.sandbox.warden.driver import Driver, Plan, Reported, Target
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Stdio
from cri.sandbox.warden.launching import Way
from cri.sandbox.warden.rehearsal import NOWHERE, Prompter, rehearse

_ERRAND_SECONDS = 10.0
_shared: list[int] = []
"""The launcher's program, open, if the spawner has opened it for all wardens."""


def prepare() -> None:
    """In the spawner, before it forks any warden."""
    try:
        _shared.append(open_program())
    except OSError as error:  # each warden will try, and tell
        warn(f"open the launcher: {error}")


def make_driver() -> Driver:
    """The driver, for a warden."""
    return FreeBSDDriver()


def fits_spare(_: SandboxSpec) -> bool:
    """A warden that went ahead has nothing yet that a sandbox could not want."""
    return True


class FreeBSDDriver:
    """One pod's jails, seen from outside."""

    def __init__(self, prompter: Prompter | None = None) -> None:
        """With a prompter, for a rehearsal."""
        self._launcher: Launcher | Prompter | None = prompter
        self._jid = 0
        """Of the pod's jail; 0 with the node's network, where a socket needs no jail."""
        self._hostname = ""
        self._killed: set[str] = set()
        """The containers that were killed on purpose."""

    @property
    def launcher(self) -> Launcher | Prompter:
        """Each of its processes is the warden's child."""
        assert self._launcher is not None, "before enter nothing is launched"
        return self._launcher

    def go_ahead(self) -> None:
        """Become the reaper, and rehearse."""
        self._get_ready()
        rehearse(FreeBSDDriver, {"jail": NOWHERE, "jid": 0, "fib": 0})
        kernel.set_title("cri-jails-spare")

    def enter(self, sandbox: SandboxSpec) -> Sequence[int]:
        """Become the reaper. The jail is there already: the daemon has made it."""
        kernel.set_title(f"cri-jails-pod {sandbox.namespace}/{sandbox.name}")
        self._hostname = sandbox.hostname or socket.gethostname()
        name = jails.pod_name(sandbox.id)
        jail = kernel.jail_find(name)
        if jail is None:
            raise HostError("enter", f"jail {name}", "it is gone")
        if sandbox.namespaces.network is not Sharing.NODE:
            self._jid = jail.jid
        if self._launcher is None:
            self._get_ready()
        return []

    def _get_ready(self) -> None:
        kernel.become_reaper()
        try:
            self._launcher = Launcher(_shared[0] if _shared else open_program())
        except OSError as error:
            raise HostError("open", "the launcher", error.strerror or str(error), error.errno) from error

    def start(self, plan: Plan, stdio: Stdio, target: int, reported: Reported) -> Way:
        """The way of a container's first process."""
        return ways.start(plan, stdio, self._hostname, reported)

    def exec(self, target: Target, process: ProcessSpec, stdio: Stdio, name: str, reported: Reported) -> Way:
        """The way of a process into a running container's jail."""
        return ways.exec_(target, process, stdio, self._hostname, reported)

    def end(self, plan: Plan) -> None:
        """Nothing is kept for a container."""

    def signal(self, plan: Plan, first: int, number: int, *, again: bool) -> bool:
        """Send a signal to the first process. A jail has no init that could be deaf to it."""
        if number == signal.SIGKILL:
            self._killed.add(plan.spec.id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, number)
        return True

    def kill(self, plan: Plan, first: int) -> bool:
        """Remove the container's jail, which KILLs everything in it, and look whether anything is left.

        The first process may not have entered the jail yet.
        """
        if first:
            self._killed.add(plan.spec.id)
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        if (jail := kernel.jail_find(plan.host["jail"])) is not None:
            with contextlib.suppress(OSError):  # somebody else was quicker
                kernel.jail_remove(jail.jid)
        return not kernel.processes({plan.host["jid"]})

    def kill_exec(self, plan: Plan, pid: int, name: str) -> None:
        """KILL an exec's process and all that descends from it, whatever session that has gone to.

        Which process that is, the warden knows soon after it was made, and asks again.
        """
        if pid:
            kernel.reaper_kill(signal.SIGKILL, pid)

    def end_exec(self, plan: Plan, name: str) -> bool:
        """Nothing is made for an exec."""
        return True

    def oom_killed(self, plan: Plan, number: int) -> bool:
        """Whether the memory limit has ended the container: nobody else sends KILL but us, and those who may.

        rctl(4) keeps no record of what it has killed. Whether there is a limit, it says itself: an update may have made one.
        """
        if number != signal.SIGKILL or plan.spec.id in self._killed:
            return False
        try:
            return bool(kernel.rctl_rules(f"jail:{plan.host['jail']}:memoryuse"))
        except OSError as error:
            if error.errno == errno.ENOSYS:  # no racct, no limits
                return False
            raise

    def make_socket(self, family: int, type_: int, protocol_number: int) -> socket.socket:
        """A socket that belongs to the pod's vnet: made by a process that enters it, and handed out.

        Raises HostError.
        """
        if not self._jid:
            return socket.socket(family, type_, protocol_number)
        steps = run_plan.send_socket(family, type_, protocol_number)
        return socket.socket(
            fileno=self._errand("make a socket of", f"family {family} in the pod's jail", steps)
        )

    def sysctl(self, name: str, value: str | None) -> str:
        """A variable of the pod's vnet: which one is meant depends on who asks, so a process does that enters the jail.

        The kernel lets nobody in a jail set one that is not a vnet's own. Raises HostError.
        """
        operation, subject = ("read" if value is None else "set"), f"sysctl {name}"
        if not self._jid:
            raise HostError(operation, subject, "the pod shares the node's network", errno.EPERM)
        if not name.startswith("net."):
            raise HostError(operation, subject, "only net.* belongs to a pod's network", errno.EPERM)
        try:
            kind = kernel.sysctl_kind(name)
            wanted = None if value is None else sysctls.from_text(kind, value)
            answer = self._errand(operation, subject, run_plan.send_variable(name, wanted))
            with os.fdopen(answer, "rb") as file:
                file.seek(0)
                return sysctls.to_text(kind, file.read())
        except OSError as error:
            raise HostError(operation, subject, error.strerror or str(error), error.errno) from error

    def close(self) -> None:
        """The jails are the daemon's to remove."""

    def _errand(self, operation: str, subject: str, steps: Iterable[Step]) -> int:
        """Have a process enter the pod's jail and do something there; the descriptor that it sends. Raises HostError."""
        sent, failure = [], (0, "the process that should do it has died")
        try:
            with self.launcher.launch(run_plan.errand(self._jid, steps)) as report:
                report.settimeout(_ERRAND_SECONDS)
                while (received := receive(report)) is not None:
                    record, descriptor = received
                    if record.kind is Kind.SENT:
                        sent.append(descriptor)
                    elif record.kind is Kind.FAILED:
                        failure = record.error, os.strerror(record.error)
        except (OSError, PlanError) as error:
            failure = getattr(error, "errno", None) or 0, getattr(error, "strerror", None) or str(error)
        if len(sent) == 1 and not failure[0]:
            return sent[0]
        for descriptor in sent:
            os.close(descriptor)
        raise HostError(operation, subject, failure[1], failure[0] or None)
