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
from typing import NoReturn

from cri.sandbox.host import HostError, StartError
from cri.sandbox.linux import capabilities, kernel, sysctls
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.rootfs import RootBuilder
from cri.sandbox.spec import Credentials, ProcessSpec, SandboxSpec, Sharing
from cri.sandbox.warden import launch, users
from cri.sandbox.warden.driver import Driver, Plan
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Child, Stdio

_SHARED_MEMORY = "67108864"
"""Bytes of a pod's /dev/shm: 64 MiB, as every container engine has it."""
_OOM_SCORE_WARDEN = -998
_KILL_PASSES = 10
"""A process that forks while its group is killed is caught by the next pass."""
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

        def child(report: socket.socket) -> NoReturn:
            self._first(report, plan, stdio)

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

    def exec(
        self, plan: Plan, first: int, process: ProcessSpec, credentials: Credentials, stdio: Stdio, name: str
    ) -> Child:
        """Fork a process into a running container."""
        mounts = os.open(f"/proc/{first}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        pids = os.open(f"/proc/{first}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _ChildNamespace(pids, self._own_pids):
                return launch.fork(
                    lambda report: self._beside(report, plan, process, credentials, stdio, name, (mounts, first))
                )
        finally:
            os.close(mounts)
            os.close(pids)

    def kill(self, plan: Plan, first: int) -> bool:
        """KILL everything in the container's cgroups, and its first process if it still is one."""
        if first:
            _kill(first)
        return _group(plan).kill()

    def kill_exec(self, plan: Plan, pid: int, name: str) -> None:
        """KILL the exec's session, and what it started that has left the session."""
        _kill(-pid)
        _kill(pid)
        if group := _group(plan).subgroup(name):
            for _ in range(_KILL_PASSES):
                if group.kill():
                    break

    def end_exec(self, plan: Plan, name: str) -> None:
        """Remove the exec's cgroup. One that still has processes (they may stay) goes with the container."""
        for directory in _group(plan).directories.values():
            try:
                os.rmdir(f"{directory}/{name}")  # noqa: PTH106
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY):
                    warn(f"cannot remove cgroup {directory}/{name}: {error.strerror}")

    def oom_killed(self, plan: Plan) -> bool:
        """Whether the memory limit has killed a process of the container."""
        return _group(plan).oom_kills() > 0

    def resize(self, pty: int, width: int, height: int) -> None:
        """Set the size of a terminal."""
        fcntl.ioctl(pty, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

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
                    kernel.set_name("cri-jails-init")
                    kernel.reap_forever()
                finally:
                    os._exit(1)
        return pid

    def _first(self, report: socket.socket, plan: Plan, stdio: Stdio) -> NoReturn:
        spec = plan.spec
        group = _group(plan)
        group.join()
        if spec.resources.oom_score_adj is not None:
            _set_oom_score(spec.resources.oom_score_adj)
        root = RootBuilder(spec, plan.host["root"], group.directories, group.version)
        root.build(self._shared_memory)
        credentials, home = users.resolve(spec.process.user, *users.read_accounts())
        self._become(report, plan, spec.process, credentials, stdio, home, console=True)

    def _beside(
        self,
        report: socket.socket,
        plan: Plan,
        process: ProcessSpec,
        credentials: Credentials,
        stdio: Stdio,
        name: str,
        target: tuple[int, int],
    ) -> NoReturn:
        mounts, first = target
        group = _group(plan)
        group.join()
        if own := group.subgroup(name):
            own.join()
        if plan.spec.resources.oom_score_adj is not None:
            _set_oom_score(plan.spec.resources.oom_score_adj)
        if group.version == 2:
            with open(f"/proc/{first}/ns/cgroup") as cgroups:  # noqa: PTH123
                kernel.setns(cgroups.fileno(), kernel.CLONE_NEWCGROUP)
        kernel.setns(mounts, kernel.CLONE_NEWNS)
        entry = next((entry for entry in users.read_accounts()[0] if entry.uid == credentials.uid), None)
        home = entry.home if entry and entry.home else "/"
        self._become(report, plan, process, credentials, stdio, home, console=False)

    def _become(
        self,
        report: socket.socket,
        plan: Plan,
        process: ProcessSpec,
        credentials: Credentials,
        stdio: Stdio,
        home: str,
        *,
        console: bool,
    ) -> NoReturn:
        """From root with everything to the program with what it may have. The order matters: each step needs what later
        ones give up.
        """
        spec = plan.spec
        os.setsid()
        pty = None
        if stdio.tty:
            pty = _make_terminal(credentials, console=console)
        else:
            launch.use_stdio(stdio, credentials)
        cwd = spec.process.cwd or "/"  # an exec's too: the CRI gives it none of its own
        try:
            os.chdir(cwd)
        except OSError as error:
            raise StartError("chdir to", f'"{cwd}"', (error.strerror or "").lower(), error.errno) from error
        own = capabilities.restrict_bounding(capabilities.wanted(spec.security))
        os.setgroups(credentials.groups)
        os.setresgid(credentials.gid, credentials.gid, credentials.gid)
        os.setresuid(credentials.uid, credentials.uid, credentials.uid)
        # Another user has lost them all with setresuid, and gains none by exec: no inheritable, no ambient ones.
        if credentials.uid == 0:
            kernel.set_capabilities(own)
        if spec.security.no_new_privileges:
            kernel.set_no_new_privileges()
        env = launch.environment(
            launch.parse_env((*spec.process.env, *process.env)),
            home=home,
            hostname=spec.hostname or self._hostname,
            tty=stdio.tty,
        )
        os.umask(0o022)
        kernel.reset_signals()
        kernel.close_on_exec_from(3)
        # After setresuid, which clears it. A warden that dies takes its containers with it: nobody would record their
        # end. (A setuid program clears it once more; the daemon then kills by cgroup.)
        kernel.die_with_parent(signal.SIGKILL)
        launch.announce(report, credentials, pty)
        launch.execute(process.argv, env)


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
            raise HostError("return to", "the node's process namespace", error.strerror or "", error.errno) from error


def _group(plan: Plan) -> Group:
    cgroup = plan.host["cgroup"]
    return Group(cgroup["version"], cgroup["directories"])


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


def _make_shared_memory(runtime_directory: str) -> int | str:
    """What each container of the pod clones for its /dev/shm."""
    mount = kernel.new_filesystem("tmpfs", {"size": _SHARED_MEMORY, "mode": "1777"})
    try:
        os.close(kernel.clone_mount(mount))
    except OSError:
        # Before Linux 6.15 a mount that is nowhere cannot be cloned: a directory of the node must do, without the limit.
        os.close(mount)
        path = f"{runtime_directory}/shm"
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
        os.chmod(path, 0o1777)  # noqa: PTH101
        return path
    return mount


def _make_terminal(owner: Credentials, *, console: bool) -> int:
    """Make a pty in the container's own devpts, and its end the process's standard streams and controlling terminal."""
    pty = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(pty, _TIOCSPTLCK, struct.pack("i", 0))
    terminal = fcntl.ioctl(pty, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(terminal, owner.uid, -1)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for target in range(3):
        os.dup2(terminal, target)
    if console:
        _bind_console(terminal)
    os.close(terminal)
    return pty


def _bind_console(terminal: int) -> None:
    path = "/dev/console"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600))
        tree = kernel.clone_mount(terminal)
        target = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        kernel.attach_mount(tree, target, path)
        os.close(target)
        os.close(tree)
    except OSError as error:
        raise HostError("make", path, error.strerror or str(error), error.errno) from error
