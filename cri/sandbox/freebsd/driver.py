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
import stat
import termios
from collections.abc import Callable, Sequence
from dataclasses import replace
from fcntl import ioctl
from typing import NoReturn

from cri.sandbox.freebsd import jails, kernel, sysctls
from cri.sandbox.host import HostError, StartError
from cri.sandbox.spec import ProcessSpec, SandboxSpec, Sharing, TerminalSize
from cri.sandbox.warden import accounts, launch, protocol, users
from cri.sandbox.warden.driver import Driver, Plan, Target
from cri.sandbox.warden.launch import Child, Report, Stdio

_CHILD_SECONDS = 10.0
_UMASK = 0o022


def make_driver() -> Driver:
    """The driver, for a warden."""
    return FreeBSDDriver()


class FreeBSDDriver:
    """One pod's jails, seen from outside."""

    def __init__(self) -> None:
        self._jid = 0
        """Of the pod's jail; 0 with the node's network, where a socket needs no jail."""
        self._hostname = ""
        self._killed: set[str] = set()
        """The containers that were killed on purpose."""

    def enter(self, sandbox: SandboxSpec) -> Sequence[int]:
        """Become the reaper. The jail is there already: the daemon has made it."""
        kernel.become_reaper()
        kernel.set_title(f"cri-jails-pod {sandbox.namespace}/{sandbox.name}")
        self._hostname = sandbox.hostname or socket.gethostname()
        name = jails.pod_name(sandbox.id)
        jail = kernel.jail_find(name)
        if jail is None:
            raise HostError("enter", f"jail {name}", "it is gone")
        if sandbox.namespaces.network is not Sharing.NODE:
            self._jid = jail.jid
        return []

    def start(self, plan: Plan, stdio: Stdio, target: int) -> Child:
        """Fork a container's first process."""

        def child(channel: socket.socket) -> NoReturn:
            self._become(channel, plan, plan.spec.process, stdio, None)

        return launch.fork(child)

    def exec(self, target: Target, process: ProcessSpec, stdio: Stdio, name: str) -> Child:
        """Fork a process into a running container's jail."""

        def child(channel: socket.socket) -> NoReturn:
            self._become(channel, target.plan, process, stdio, target.report)

        return launch.fork(child)

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
        """KILL an exec's process and all that descends from it, whatever session that has gone to."""
        kernel.reaper_kill(signal.SIGKILL, pid)

    def end_exec(self, plan: Plan, name: str) -> None:
        """Nothing is made for an exec."""

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
        """A socket that belongs to the pod's vnet: made by a child that enters it, and handed out.

        Raises HostError.
        """
        if not self._jid:
            return socket.socket(family, type_, protocol_number)

        def hand_out(channel: socket.socket) -> None:
            with socket.socket(family, type_, protocol_number) as made:
                protocol.send(channel, {}, [made.fileno()])

        _, descriptors = self._inside("make a socket of", f"family {family} in the pod's jail", hand_out)
        return socket.socket(fileno=descriptors[0])

    def sysctl(self, name: str, value: str | None) -> str:
        """A variable of the pod's vnet: which one is meant depends on who asks, so a child does that enters the jail.

        The kernel lets nobody in a jail set one that is not a vnet's own. Raises HostError.
        """
        operation, subject = ("read" if value is None else "set"), f"sysctl {name}"
        if not self._jid:
            raise HostError(operation, subject, "the pod shares the node's network", errno.EPERM)
        if not name.startswith("net."):
            raise HostError(operation, subject, "only net.* belongs to a pod's network", errno.EPERM)

        def exchange(channel: socket.socket) -> None:
            kind = kernel.sysctl_kind(name)
            before = sysctls.to_text(kind, kernel.sysctl(name))
            if value is not None:
                kernel.sysctl_set(name, sysctls.from_text(kind, value))
            protocol.send(channel, {"before": before})

        message, _ = self._inside(operation, subject, exchange)
        return str(message["before"])

    def close(self) -> None:
        """The jails are the daemon's to remove."""

    def _inside(
        self, operation: str, subject: str, action: Callable[[socket.socket], None]
    ) -> tuple[protocol.Message, list[int]]:
        """Have a child enter the pod's jail and act there; return what it then sends. Raises HostError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                pid = os.fork()
                if pid == 0:
                    _run(lambda: self._act(theirs, action))
            ours.settimeout(_CHILD_SECONDS)
            try:
                received = protocol.receive(ours)
            except OSError as error:
                raise HostError(operation, subject, error.strerror or str(error), error.errno) from error
        if received is None:
            raise HostError(operation, subject, "the child that should do it has died")
        message, _ = received
        if "errno" in message:
            raise HostError(operation, subject, message["reason"], message["errno"])
        return received

    def _act(self, channel: socket.socket, action: Callable[[socket.socket], None]) -> None:
        kernel.close_from(3, {channel.fileno()})
        try:
            kernel.attach(self._jid)
            action(channel)
        except OSError as error:
            protocol.send(channel, {"errno": error.errno, "reason": error.strerror or str(error)})

    def _become(
        self, channel: socket.socket, plan: Plan, process: ProcessSpec, stdio: Stdio, report: Report | None
    ) -> NoReturn:
        """In a forked child: enter the jail, and become the program. `report` is the first process's, for an exec."""
        spec = plan.spec
        _default_signals()
        os.setsid()
        kernel.set_fib(plan.host["fib"])
        streams = [fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr) if fd is not None]
        # A directory that is open would be a way out of the jail; the kernel lets nobody in who has one.
        kernel.close_from(3, {channel.fileno(), *streams})
        # Root in the jail may trace whatever is there: not this, which still has the warden's memory.
        kernel.hide_memory()
        kernel.attach(plan.host["jid"])
        if not stdio.tty:
            _take_streams(stdio)
        if report is None:
            report = Report(*users.resolve(spec.process.user, accounts.read()))
        if stdio.tty:
            report = replace(report, pty=_take_terminal(report.credentials.uid, process.terminal_size))
        _enter_directory(spec.process.cwd or "/")
        env = launch.environment(
            launch.parse_env(
                spec.process.env if process is spec.process else (*spec.process.env, *process.env)
            ),
            home=report.home,
            hostname=spec.hostname or self._hostname,
            tty=stdio.tty,
        )
        candidates = launch.candidates(process.argv, env)
        launch.announce(channel, report)
        _execute(process.argv, candidates, env, report, no_new_privileges=spec.security.no_new_privileges)


def _default_signals() -> None:
    """Be deaf to nothing any more: a stop may come before the program runs, which is to find no trace of Python's handlers."""
    for number in signal.valid_signals():
        # What Python ignores or handles, the program must find as if it had never been.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_streams(stdio: Stdio) -> None:
    # The container's own: its root may change owner and mode of what it has open.
    null = os.open("/dev/null", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISCHR(os.fstat(null).st_mode):
        raise StartError("open", '"/dev/null"', "it is no device: a volume hides that of the container")
    # First out of the way of each other's numbers.
    given = [os.dup(null if fd is None else fd) for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
    for number, fd in enumerate(given):
        os.dup2(fd, number)


def _take_terminal(owner: int, size: TerminalSize | None) -> int:
    """Make a pty as a process of the jail, in whose devfs only such a one shows; our end of it, the other is the streams."""
    pty, terminal = os.openpty()
    os.fchown(terminal, owner, -1)
    os.fchmod(terminal, 0o620)
    ioctl(terminal, termios.TIOCSCTTY, 0)
    if size is not None:
        launch.set_terminal_size(terminal, size)
    for number in range(3):
        os.dup2(terminal, number)
    os.close(terminal)
    return pty


def _enter_directory(path: str) -> None:
    """Enter the working directory; made if it is not there, as every runtime does it."""
    try:
        try:
            os.chdir(path)
        except FileNotFoundError:
            os.makedirs(path, mode=0o755)  # noqa: PTH103
            os.chdir(path)
    except OSError as error:
        raise StartError(
            "chdir to", f'"{path}"', os.strerror(error.errno or 0).lower(), error.errno
        ) from error


def _execute(
    argv: tuple[str, ...],
    candidates: Sequence[str],
    env: dict[str, str],
    report: Report,
    *,
    no_new_privileges: bool,
) -> NoReturn:
    """Give up what the program must not have, and execute it: the first candidate that can be. Raises StartError."""
    os.umask(_UMASK)
    user = report.credentials
    # Before FreeBSD 15 the first of them is the effective group: setgroups(2).
    os.setgroups([user.gid, *(group for group in user.groups if group != user.gid)])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if no_new_privileges:
        kernel.no_new_privileges()
    kernel.die_with_parent(signal.SIGKILL)
    failure: OSError | None = None
    for path in candidates:
        try:
            os.execve(path, argv, env)
        except OSError as error:
            # Like execvp(3): a name that cannot be executed here may be found further on, and its error is the better one.
            if failure is None or isinstance(failure, FileNotFoundError | NotADirectoryError):
                failure = error
    assert failure is not None
    raise launch.not_executed(argv, failure.errno or 0)


def _run(action: Callable[[], None]) -> NoReturn:
    """Be a child that does one thing."""
    try:
        action()
    finally:
        os._exit(0)
