"""The Linux side of a warden: namespaces, and the way of a new process into them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from cri.sandbox.host import HostError, StartError
from cri.sandbox.linux import capabilities, cgroups, kernel, sysctls
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.rootfs import RootBuilder
from cri.sandbox.spec import Credentials, ProcessSpec, SandboxSpec, Sharing, TerminalSize
from cri.sandbox.warden import accounts, launch, users
from cri.sandbox.warden.driver import Driver, Plan, Target
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Child, Report, Stdio

_SHARED_MEMORY = "67108864"
"""Bytes of a pod's /dev/shm: 64 MiB, as every container engine has it."""
_OOM_SCORE_WARDEN = -998
_KILL_PASSES = 10
"""A process that forks while its group is killed is caught by the next pass."""
_INIT = "cri-jails-init"
"""What a pod sees of the process that is 1 in its shared process namespace."""
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
"""ioctl_tty(2): the other end of a pty, without a look-up by name that the container could answer."""


def make_driver() -> Driver:
    """The driver, for a warden."""
    return LinuxDriver()


class LinuxDriver:
    """One pod's namespaces. The warden is a member of them, but for its mounts and processes, which are the node's."""

    def __init__(self) -> None:
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._shared_memory: int | str = "/dev/shm"  # noqa: S108  # the node's, for a pod that shares its IPC
        self._init = 0
        self._hostname = ""

    def enter(self, sandbox: SandboxSpec) -> Sequence[int]:
        """Leave the node's network, IPC and UTS namespaces as far as the pod has its own."""
        # A child on its way into a container is seen by it, and may be as powerless as its programs; its memory is not
        # theirs to read or write.
        kernel.hide_memory()
        kernel.become_subreaper()
        kernel.set_name("cri-jails-pod")
        _set_oom_score(_OOM_SCORE_WARDEN)
        own = sandbox.namespaces
        # A pod in the node's network has the node's name too.
        flags = 0 if own.network is Sharing.NODE else kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS
        flags |= 0 if own.ipc is Sharing.NODE else kernel.CLONE_NEWIPC
        kernel.unshare(flags)
        if own.network is not Sharing.NODE and sandbox.hostname:
            socket.sethostname(sandbox.hostname)
        self._hostname = socket.gethostname()
        sysctls.write(sandbox.sysctls, own)
        if own.ipc is not Sharing.NODE:
            self._shared_memory = _make_shared_memory(sandbox.runtime_directory)
        if own.pid is Sharing.POD:
            self._init = self._start_init()
        return [os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)]

    def start(self, plan: Plan, stdio: Stdio, target: int) -> Child:
        """Fork a container's first process."""

        def child(channel: socket.socket) -> NoReturn:
            self._first(channel, plan, stdio)

        sharing = plan.spec.namespaces.pid
        if sharing is Sharing.NODE:
            return launch.fork(child)
        if sharing is Sharing.CONTAINER:
            with _ChildNamespace(None, self._own_pids):
                return launch.fork(child)
        member = self._init if sharing is Sharing.POD else target
        pids = os.open(f"/proc/{member}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _ChildNamespace(pids, self._own_pids):
                return launch.fork(child)
        finally:
            os.close(pids)

    def exec(self, target: Target, process: ProcessSpec, stdio: Stdio, name: str) -> Child:
        """Fork a process into a running container. It may take its time, or be stopped by the container."""
        namespaces = f"/proc/{target.first}/ns"
        group = _group(target.plan)
        with contextlib.ExitStack() as opened:

            def enter(kind: str) -> int:
                fd = os.open(f"{namespaces}/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                return fd

            joined = group.for_exec(name)
            way = _Way(
                plan=target.plan,
                process=process,
                report=target.report,
                hostname=self._hostname,
                cgroups=tuple(joined.join_files()),
                late_cgroups=tuple(joined.late_join_files()),
                oom_score=_oom_score(target.first),
                mounts=enter("mnt"),
                cgroup_namespace=enter("cgroup"),
            )
            with _ChildNamespace(enter("pid"), self._own_pids):
                return launch.fork(lambda channel: self._beside(channel, way, stdio))

    def signal(self, plan: Plan, first: int, number: int, *, again: bool) -> bool:
        """Send a signal to the first process; again only when it is ready for it.

        The first process of a namespace gets only signals that it handles or waits for, as an init must not die by chance;
        the kernel drops the others (pid_namespaces(7)).
        """
        alone = plan.spec.namespaces.pid is Sharing.CONTAINER
        ready = not alone or number in (signal.SIGKILL, signal.SIGSTOP) or _ready_for(first, number)
        if ready or not again:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, number)
        return ready

    def kill(self, plan: Plan, first: int) -> bool:
        """KILL everything in the container's cgroups, and its first process if it still is one."""
        if first:
            _kill(first)
        return _group(plan).kill()

    def kill_exec(self, plan: Plan, pid: int, name: str) -> None:
        """KILL the exec's session, and what it started that has left the session."""
        _kill(-pid)
        _kill(pid)
        group = _group(plan)
        if own := group.subgroup(name):
            for _ in range(_KILL_PASSES):
                if own.kill():
                    break
        group.thaw()

    def end_exec(self, plan: Plan, name: str) -> None:
        """Remove the exec's cgroup. One that still has processes (they may stay) goes with the container."""
        for directory in _group(plan).directories.values():
            try:
                os.rmdir(f"{directory}/{name}")  # noqa: PTH106
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY):
                    warn(f"cannot remove cgroup {directory}/{name}: {error.strerror}")

    def oom_killed(self, plan: Plan, number: int) -> bool:  # noqa: ARG002 - the cgroup counts them
        """Whether the memory limit has killed a process of the container."""
        return _group(plan).oom_kills() > 0

    def make_socket(self, family: int, type_: int, protocol_number: int) -> socket.socket:
        """A socket of the network namespace that the warden is in."""
        return socket.socket(family, type_, protocol_number)

    def sysctl(self, name: str, value: str | None) -> str:
        """A variable of the network namespace that the warden is in, which is what its /proc/sys/net shows."""
        return sysctls.network_variable(name, value)

    def close(self) -> None:
        """End the pod's init; the namespaces go with the warden."""
        if self._init:
            _kill(self._init)
            with contextlib.suppress(ChildProcessError):  # somebody killed it, and the warden has reaped it
                os.waitpid(self._init, 0)
            self._init = 0

    def _start_init(self) -> int:
        """The process that is 1 in the pod's shared process namespace, and reaps there."""
        with _ChildNamespace(None, self._own_pids):
            pid = os.fork()
            if pid == 0:
                try:
                    kernel.die_with_parent(signal.SIGKILL)
                    kernel.set_name(_INIT)
                    kernel.hide_arguments(_INIT)
                    _enter_nothing()
                    kernel.reap_forever()
                finally:
                    os._exit(1)
        return pid

    def _first(self, channel: socket.socket, plan: Plan, stdio: Stdio) -> NoReturn:
        spec = plan.spec
        group = _group(plan)
        group.join()
        _set_oom_score(spec.resources.oom_score_adj or 0)  # the warden's own must not be inherited
        RootBuilder(plan, group.shown, group.version).build(self._shared_memory)
        report = Report(*users.resolve(spec.process.user, accounts.read(_open_own)))
        self._become(channel, _Way(plan, spec.process, report, self._hostname), stdio, console=True)

    def _beside(self, channel: socket.socket, way: _Way, stdio: Stdio) -> NoReturn:
        """In a forked child: become a program of the container; with a terminal, make that inside it first."""
        if stdio.tty:
            cgroups.join(way.cgroups, way.late_cgroups)
            if way.oom_score is not None:
                _set_oom_score(way.oom_score)
            if way.cgroup_namespace >= 0:
                kernel.setns(way.cgroup_namespace, kernel.CLONE_NEWCGROUP)
            kernel.setns(way.mounts, kernel.CLONE_NEWNS)
            way = replace(way, cgroups=(), late_cgroups=(), oom_score=None, mounts=-1, cgroup_namespace=-1)
        self._become(channel, way, stdio, console=False)

    def _become(self, channel: socket.socket, way: _Way, stdio: Stdio, *, console: bool) -> NoReturn:
        """In a forked child whose cgroups and namespaces are right: become the program."""
        if stdio.tty:
            os.setsid()
            pty = _make_terminal(way.report.credentials, way.process.terminal_size, console=console)
            way = replace(way, report=replace(way.report, pty=pty))
        program = way.program(stdio, channel.fileno())
        launch.announce(channel, way.report)
        try:
            kernel.become(program)
        except kernel.ProgramError as error:
            raise _start_error(way, error) from None


@dataclass(frozen=True, slots=True)
class _Way:
    """A process's way into its container, as far as it is known before it starts."""

    plan: Plan
    process: ProcessSpec
    report: Report
    hostname: str
    cgroups: tuple[str, ...] = ()
    late_cgroups: tuple[str, ...] = ()
    oom_score: int | None = None
    mounts: int = -1
    cgroup_namespace: int = -1

    def program(self, stdio: Stdio, report: int) -> kernel.Program:
        """What the kernel binding needs. Raises StartError."""
        spec, process = self.plan.spec, self.process
        env = launch.environment(
            launch.parse_env(
                spec.process.env if process is spec.process else (*spec.process.env, *process.env)
            ),
            home=self.report.home,
            hostname=spec.hostname or self.hostname,
            tty=stdio.tty,
        )
        keep, drop = capabilities.possible(capabilities.wanted(spec.security))
        streams = [-1 if fd is None else fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr)]
        return kernel.Program(
            argv=process.argv,
            env=env,
            candidates=launch.candidates(process.argv, env),
            cwd=spec.process.cwd or "/",  # an exec's too: the CRI gives it none of its own
            uid=self.report.credentials.uid,
            gid=self.report.credentials.gid,
            groups=self.report.credentials.groups,
            drop=drop,
            capabilities=keep,
            no_new_privileges=spec.security.no_new_privileges,
            report=report,
            cgroups=self.cgroups,
            late_cgroups=self.late_cgroups,
            oom_score=self.oom_score,
            mounts=self.mounts,
            cgroup_namespace=self.cgroup_namespace,
            stdio=None if stdio.tty else (streams[0], streams[1], streams[2]),
        )


class _ChildNamespace:
    """Lets the next fork be born in another process namespace: `pids`, or a new one."""

    def __init__(self, pids: int | None, own: int) -> None:
        self._pids = pids
        self._own = own

    def __enter__(self) -> None:
        if self._pids is None:
            kernel.unshare(kernel.CLONE_NEWPID)
        else:
            kernel.setns(self._pids, kernel.CLONE_NEWPID)

    def __exit__(self, *exception: object) -> None:
        # In the child it makes no difference (and fails, as the namespace is not below its own).
        try:
            kernel.setns(self._own, kernel.CLONE_NEWPID)
        except OSError as error:
            raise HostError(
                "return to", "the node's process namespace", error.strerror or "", error.errno
            ) from error


def _group(plan: Plan) -> Group:
    return Group.noted(plan.host["cgroup"])


def _start_error(way: _Way, error: kernel.ProgramError) -> StartError:
    if error.failed == "exec":
        return launch.not_executed(way.process.argv, error.errno)
    if error.failed == "chdir":
        return StartError(
            "chdir to", f'"{way.plan.spec.process.cwd}"', os.strerror(error.errno).lower(), error.errno
        )
    return StartError(
        "start", f'"{way.process.argv[0]}"', f"{error.failed}: {os.strerror(error.errno)}", error.errno
    )


def _ready_for(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, blocks it, or waits in sigwait(3) (proc_pid_status(5))."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            masks = [int(line.split()[1], 16) for line in file if line.startswith((b"SigCgt:", b"SigBlk:"))]
        # While it waits, the kernel shows what it waits for as not blocked.
        waits = b"sigtimedwait" in Path(f"/proc/{pid}/wchan").read_bytes()
    except FileNotFoundError:
        return True  # it has ended; there is nothing to wait for
    return waits or any(mask >> (number - 1) & 1 for mask in masks)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _set_oom_score(score: int) -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write(str(score))
    except OSError as error:
        # Lowering it takes SYS_RESOURCE, which nested nodes lack; that must not cost the pod.
        warn(f"cannot set oom_score_adj to {score}: {error.strerror}")


def _oom_score(first: int) -> int | None:
    """What a process's oom_score_adj is: an update may have changed it since that was started. None if it has ended."""
    try:
        return int(Path(f"/proc/{first}/oom_score_adj").read_text())
    except OSError:
        return None


def _open_own(path: str) -> int:
    """Open a file of the container as what it is there: no /proc/PID/root leads to a process that it sees."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return kernel.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(root)


def _enter_nothing() -> None:
    """Go where there is no file: what sees this process may follow its /proc/PID/root."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
    hardened = (
        kernel.MOUNT_ATTR_RDONLY
        | kernel.MOUNT_ATTR_NOSUID
        | kernel.MOUNT_ATTR_NODEV
        | kernel.MOUNT_ATTR_NOEXEC
    )
    empty = kernel.new_filesystem("tmpfs", {"size": "4k", "mode": "555"}, hardened)
    target = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.attach_mount(empty, target, "/proc")
    os.chdir("/proc")
    kernel.pivot_root(".", ".")  # stacks the old root on the new one: pivot_root(2), NOTES
    kernel.unmount(".", kernel.MNT_DETACH)
    os.chdir("/")


def _make_shared_memory(runtime_directory: str) -> int | str:
    """What each container of the pod clones for its /dev/shm."""
    hardened = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
    mount = kernel.new_filesystem("tmpfs", {"size": _SHARED_MEMORY, "mode": "1777"}, hardened)
    try:
        os.close(kernel.clone_mount(mount))
    except OSError:
        # Before Linux 6.15 a mount that is nowhere cannot be cloned: a directory of the node must do, without the limit.
        os.close(mount)
        path = f"{runtime_directory}/shm"
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
        os.chmod(path, 0o1777)  # noqa: PTH101, S103  # as /dev/shm is
        return path
    return mount


def _make_terminal(owner: Credentials, size: TerminalSize | None, *, console: bool) -> int:
    """Make a pty in the container's own devpts, and its end the process's standard streams and controlling terminal."""
    pty = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(pty, _TIOCSPTLCK, struct.pack("i", 0))
    terminal = fcntl.ioctl(pty, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(terminal, owner.uid, -1)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    if size is not None:
        launch.set_terminal_size(terminal, size)
    for target in range(3):
        os.dup2(terminal, target)
    if console:
        _bind_console(terminal)
    os.close(terminal)
    return pty


def _bind_console(terminal: int) -> None:
    path = "/dev/console"
    try:
        with contextlib.suppress(FileExistsError):
            # What is there already is not opened: that may be the node's console, in a volume.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        tree = kernel.clone_mount(terminal)
        target = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        kernel.attach_mount(tree, target, path)
        os.close(target)
        os.close(tree)
    except OSError as error:
        raise HostError("make", path, error.strerror or str(error), error.errno) from error
