"""The Linux side of a warden: namespaces, and the way of a new process into them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Generator, Sequence
from pathlib import Path

from cri.sandbox.host import HostError
from cri.sandbox.launcher.client import PROGRAM, Kind, Launcher, receive
from cri.sandbox.linux import image_trees, kernel, run_plan, sysctls, ways
from cri.sandbox.linux.build_plan import NODE_PROC
from cri.sandbox.linux.cgroup_hierarchies import Hierarchies, init_group
from cri.sandbox.linux.cgroups import CONTROLLERS, Group
from cri.sandbox.linux.shared_proc import SharedProc
from cri.sandbox.linux.ways import Surroundings
from cri.sandbox.spec import ProcessSpec, Resources, SandboxSpec, Sharing
from cri.sandbox.warden.driver import Driver, Plan, Reported, Target
from cri.sandbox.warden.journal import warn
from cri.sandbox.warden.launch import Stdio
from cri.sandbox.warden.launching import Pause, Sent, Stage, Way
from cri.sandbox.warden.rehearsal import NOWHERE, Prompter, rehearse

_SHARED_MEMORY = "67108864"
"""Bytes of a pod's /dev/shm: 64 MiB, as every container engine has it."""
_OOM_SCORE_WARDEN = -998
_KILL_PASSES = 10
"""A process that forks while its group is killed is caught by the next pass."""
_INIT = "cri-jails-init"
"""What a pod sees of the process that is 1 in its shared process namespace."""
_INIT_SECONDS = 10.0
"""How long that may take to be there."""
_INIT_LIMITS = Resources(pids_limit=2, memory_limit=16 << 20)
"""Itself, and at first the porter that forks it: what traces it is not to do more in its place."""


_EXAMPLE = {
    "root": {
        "kind": "overlay",
        "lower": [NOWHERE, NOWHERE],
        "upper": NOWHERE,
        "work": NOWHERE,
        "target": NOWHERE,
    },
    "cgroup": {"version": 1, "directories": dict.fromkeys(CONTROLLERS, "/"), "inner": True},
    "device_rules": True,
    "images": {},
    "seccomp": None,
}
"""For a rehearsal."""


_shared: list[bytes] = []
"""The launcher's program, if the spawner has read it for all wardens: that of their own release, also during an upgrade."""


def prepare() -> None:
    """In the spawner, before it forks any warden."""
    try:
        _shared.append(PROGRAM.read_bytes())
    except OSError as error:  # each warden will try, and tell
        warn(f"read the launcher: {error}")


def make_driver() -> Driver:
    """The driver, for a warden."""
    return LinuxDriver()


def fits_spare(sandbox: SandboxSpec) -> bool:
    """Whether a warden that went ahead can be the one of this sandbox."""
    return Sharing.NODE not in (sandbox.namespaces.network, sandbox.namespaces.ipc)


class LinuxDriver:
    """One pod's namespaces. The warden is a member of them, but for its mounts and processes, which are the node's."""

    def __init__(self, prompter: Prompter | None = None) -> None:
        """With a prompter, for a rehearsal."""
        self._launcher: Launcher | Prompter | None = prompter
        self._shared_memory: int | str = "/dev/shm"  # noqa: S108  # the node's, for a pod that shares its IPC
        self._init = 0
        self._hostname = ""
        self._procs: dict[str, SharedProc] = {}
        """By whose process namespace it shows: a container's id, or "" for the pod's."""

    @property
    def launcher(self) -> Launcher | Prompter:
        """A member of the pod's namespaces, like the warden."""
        assert self._launcher is not None, "before enter, and after close, nothing is launched"
        return self._launcher

    def go_ahead(self) -> None:
        """Leave the node's namespaces for a pod that has all of its own: `fits_spare`."""
        self._leave(kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
        rehearse(LinuxDriver, _EXAMPLE)
        kernel.set_name("cri-jails-spare")

    def enter(self, sandbox: SandboxSpec) -> Sequence[int]:
        """Leave the node's network, IPC and UTS namespaces as far as the pod has its own."""
        kernel.set_name("cri-jails-pod")
        own = sandbox.namespaces
        if self._launcher is None:
            # A pod in the node's network has the node's name too.
            flags = 0 if own.network is Sharing.NODE else kernel.CLONE_NEWNET | kernel.CLONE_NEWUTS
            flags |= 0 if own.ipc is Sharing.NODE else kernel.CLONE_NEWIPC
            self._leave(flags)
        if own.network is not Sharing.NODE and sandbox.hostname:
            socket.sethostname(sandbox.hostname)
        self._hostname = socket.gethostname()
        sysctls.write(sandbox.sysctls, own)
        if own.ipc is not Sharing.NODE:
            self._shared_memory = _make_shared_memory(sandbox.runtime_directory)
        if own.pid is Sharing.POD:
            self._start_init(sandbox)
        return [os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)]

    def _leave(self, namespaces: int) -> None:
        kernel.hide_memory()
        kernel.become_subreaper()
        _set_oom_score(_OOM_SCORE_WARDEN)
        kernel.unshare(namespaces)
        self._launcher = Launcher(_shared[0] if _shared else PROGRAM)

    def start(self, plan: Plan, stdio: Stdio, target: int, reported: Reported) -> Way:
        """The way of a container's first process."""
        namespaces = plan.spec.namespaces
        if namespaces.pid is Sharing.NODE:
            pod = Surroundings(self._hostname, self._shared_memory, proc=NODE_PROC)
        elif namespaces.pid is Sharing.CONTAINER:

            def keep(mount: int) -> None:
                self._procs[plan.spec.id] = SharedProc(mount)

            pod = Surroundings(self._hostname, self._shared_memory, keep_proc=keep)
        else:
            owner, member = (
                ("", self._init) if namespaces.pid is Sharing.POD else (namespaces.target_id, target)
            )
            proc = yield from self._shared(owner, plan)
            try:
                pids = os.open(f"/proc/{member}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                os.close(proc)
                raise
            pod = Surroundings(self._hostname, self._shared_memory, pids, proc)
        yield from ways.start(plan, stdio, pod, reported)

    def exec(self, target: Target, process: ProcessSpec, stdio: Stdio, name: str, reported: Reported) -> Way:
        """The way of a process into a running container. It may take its time, or be stopped by the container."""
        yield from ways.exec_(
            target,
            process,
            stdio,
            _group(target.plan).for_exec(name),
            hostname=self._hostname,
            oom_score=_oom_score(target.first),
            reported=reported,
        )

    def end(self, plan: Plan) -> None:
        """Its processes are not shared any more."""
        if (proc := self._procs.pop(plan.spec.id, None)) is not None:
            proc.close()

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
        if pid:
            _kill(-pid)
            _kill(pid)
        group = _group(plan)
        if own := group.subgroup(name):
            for _ in range(_KILL_PASSES):
                if own.kill():
                    break
        group.thaw()

    def end_exec(self, plan: Plan, name: str) -> bool:
        """Remove the exec's cgroup. One that still has processes (they may stay) goes with the container at last."""
        done = True
        for directory in _group(plan).directories.values():
            try:
                os.rmdir(f"{directory}/{name}")  # noqa: PTH106
            except OSError as error:
                if error.errno == errno.EBUSY:  # also for a moment after its last process has been reaped
                    done = False
                elif error.errno != errno.ENOENT:
                    warn(f"cannot remove cgroup {directory}/{name}: {error.strerror}")
        return done

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
        """End the launcher and the pod's init; the namespaces go with the warden."""
        for proc in self._procs.values():
            proc.close()
        if isinstance(self._launcher, Launcher):
            self._launcher.close()
        if self._init:
            _kill(self._init)
            with contextlib.suppress(ChildProcessError):  # somebody killed it, and the warden has reaped it
                os.waitpid(self._init, 0)
            self._init = 0

    def _shared(self, owner: str, plan: Plan) -> Generator[Stage | Pause, Sent, int]:
        proc = self._procs.get(owner)
        if proc is None:
            raise HostError(
                "share processes with", f"container {owner}", "it has none of its own; target another"
            )
        return (yield from proc.clone(image_trees.make_place(plan.spec.directory)))

    def _start_init(self, sandbox: SandboxSpec) -> None:
        """The process that is 1 in the pod's shared process namespace, and reaps there. Raises HostError or OSError.

        Its group is removed by the daemon, once the warden has ended.
        """
        group = init_group(Hierarchies.detect(), sandbox)
        try:
            group.create()
            group.create_inner()
            group.apply(_INIT_LIMITS)
            self._launch_init(group.inner)
        except BaseException:
            group.kill_and_wait(_INIT_SECONDS)
            group.remove()
            raise

    def _launch_init(self, group: Group) -> None:
        steps = run_plan.init_plan(_INIT, group.join_files(born=True))
        with ways.born_in(group, steps, ()) as stage:
            steps = list(stage.steps)
            report = self.launcher.launch(steps, stage.descriptors)
        with report:
            report.settimeout(_INIT_SECONDS)
            while (received := receive(report)) is not None:
                record, descriptor = received
                if record.kind is Kind.BORN:
                    self._init = record.pid
                elif record.kind is Kind.SENT:
                    self._procs[""] = SharedProc(descriptor)
                else:
                    what = steps[record.step].subject if record.step >= 0 else "launch"
                    raise HostError(
                        "start", "the pod's init", f"{what}: {os.strerror(record.error)}", record.error
                    )
        if not self._init or "" not in self._procs:
            raise HostError("start", "the pod's init", "it ended on its way")


def _group(plan: Plan) -> Group:
    return Group.noted(plan.host["cgroup"])


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
