"""The FreeBSD node: the port on top of wardens, jails, mounts, limits and snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from baustelle.paths import resolve_beneath
from cri.sandbox import declared_volumes, wire
from cri.sandbox.durable import remove_any
from cri.sandbox.freebsd import health, jails, mounts, sysctls, teardown
from cri.sandbox.freebsd.calls import Calls, Mount
from cri.sandbox.freebsd.jails import Jails, Policy
from cri.sandbox.freebsd.limits import Limits
from cri.sandbox.freebsd.meter import Meter
from cri.sandbox.freebsd.mounts import TreeBuilder
from cri.sandbox.freebsd.snapshots import make_snapshotter
from cri.sandbox.host import (
    Condition,
    Features,
    Host,
    HostError,
    Measured,
    NetworkStack,
    UnfitRequestError,
    Warden,
    WardenGoneError,
)
from cri.sandbox.places import VOLUMES
from cri.sandbox.snapshots import RootSnapshotter
from cri.sandbox.spec import ContainerSpec, DiskUsage, MountSpec, Resources, SandboxSpec
from cri.sandbox.usage import Usage
from cri.sandbox.warden.container import PLAN_FILE, write_plan
from cri.sandbox.warden.driver import Plan
from cri.sandbox.warden.network import WardenNetworkStack
from cri.sandbox.warden.supervisor import SOCKET_NAME
from cri.sandbox.warden.wardens import Wardens, WardenSpawner
from cri.threads import in_own_thread

_DYING_SECONDS = 2.0
"""How long a removal waits for a jail that dies; it gives nothing back that anybody needs."""
_EMULATION = ("linux64elf", "linprocfs", "linsysfs")
"""Modules that programs for Linux need, as kldstat -v names them."""
_EMPTY_ROOT = "root"
"""The root of a pod's own jail, in the sandbox's directory."""


class FreeBSDHost(Host):
    """A FreeBSD node. A pod is a VNET jail, a container a child jail of it, and every mount is the node's."""

    name = "freebsd"
    image_systems = ("freebsd", "linux")
    counts_at_far_ends = True  # nobody of ours is in a pod's network
    features = Features(
        # A nullfs shows nothing of what is mounted below its source, so nothing below it can be written to.
        recursive_readonly_mounts=True,
        mount_propagation=False,
        host_ipc=True,
        # A jail sees its own processes and those of its children, never a sibling's or its parent's.
        shared_pids=False,
        image_volumes=True,
        device_permissions=False,  # devfs rulesets set modes, and root in a jail passes over them
        unified=frozenset({"pids.max"}),
        # What root in a jail with a vnet may do (prison_priv_check in kern_jail.c), in the words of capabilities(7).
        capabilities=frozenset(
            [
                "CHOWN",
                "DAC_OVERRIDE",
                "DAC_READ_SEARCH",
                "FOWNER",
                "FSETID",
                "KILL",
                "SETGID",
                "SETUID",
                "SETPCAP",
                "SETFCAP",
                "NET_BIND_SERVICE",
                "NET_BROADCAST",
                "NET_ADMIN",
                "NET_RAW",
                "IPC_OWNER",
                "SYS_CHROOT",
                "SYS_PTRACE",
                "AUDIT_WRITE",
            ]
        ),
    )

    snapshots: RootSnapshotter

    def __init__(
        self,
        state_dir: Path,
        runtime_dir: Path,
        snapshotter: str,
        *,
        calls: Calls,
        spawner: WardenSpawner,
        policy: Policy | None = None,
    ) -> None:
        """`runtime_dir` holds a directory per sandbox, whose name is the beginning of the sandbox's id."""
        state_dir.mkdir(parents=True, exist_ok=True)
        self._state = state_dir.resolve()
        """Resolved, as the kernel tells paths of jails and mounts."""
        self._runtime = runtime_dir
        self._calls = calls
        self._spawner = spawner
        self._wardens = Wardens(spawner, self._process_start)
        self._jails = Jails(calls, policy or Policy())
        self._limits = Limits(calls)
        self._meter = Meter(calls)
        self._jids: dict[str, int] = {}
        """Of the pods, by sandbox."""
        self.snapshots = make_snapshotter(self._state, snapshotter, calls)

    async def open(self, lost: Callable[[str], None]) -> None:
        """Start the spawner, and make the devfs ruleset."""
        self._wardens.lost = lost
        self._spawner.start()
        with _host_errors("make", f"devfs ruleset {self._jails.policy.devfs_ruleset}"):
            await asyncio.to_thread(
                self._calls.devfs_ruleset, self._jails.policy.devfs_ruleset, mounts.RULESET
            )

    async def close(self) -> None:
        """End the spawner."""
        await asyncio.to_thread(self._spawner.close)

    def boot_id(self) -> str:
        """See `Host`: the kernel's random number where it has one, else when it was booted."""
        for name in ("kern.boot_id", "kern.boottime"):
            if (value := sysctls.raw(self._calls, name)) is not None:
                return value.hex()
        raise HostError("read", "kern.boottime", "the kernel does not have it")

    async def condition(self) -> Condition:
        """Whether pods can be run."""
        with _host_errors("look at", "the node"):
            return await asyncio.to_thread(health.condition, self._calls, self._state)

    async def create_sandbox(self, spec: SandboxSpec) -> Warden:
        """Make the pod's jail, and have a warden forked for it."""
        self._jids[spec.id] = await in_own_thread(self._make_pod, spec)
        try:
            return await self._wardens.spawn(spec)
        except BaseException:
            del self._jids[spec.id]
            await in_own_thread(self._remove_pod, spec)
            raise

    async def find_warden(self, spec: SandboxSpec) -> Warden | None:
        """The warden of a sandbox made by an earlier daemon; none if somebody has removed the jail under it."""
        jail = await asyncio.to_thread(self._jails.find, jails.pod_name(spec.id))
        warden = await self._wardens.find(spec)
        if warden is None or jail is None:
            if warden is not None:
                await self._wardens.end(spec, warden)
            return None
        self._jids[spec.id] = jail.jid
        return warden

    def network_stack(self, spec: SandboxSpec, warden: Warden) -> NetworkStack:
        """The vnet of the pod's jail."""
        if spec.id not in self._jids:
            raise WardenGoneError("use the network of", f"sandbox {spec.id}", "its jail is gone")
        return WardenNetworkStack(warden, self._jids[spec.id], jails.pod_name(spec.id))

    async def network_attached(self, spec: SandboxSpec, warden: Warden) -> None:
        """Nothing waits for it: a pod has no sysctls of its own here."""

    async def stop_sandbox(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """End the warden and all that runs in the pod, and remove its jail."""
        await self._wardens.end(spec, warden)
        self._jids.pop(spec.id, None)
        await in_own_thread(self._remove_pod, spec)

    async def remove_sandbox(self, spec: SandboxSpec) -> None:
        """Remove what is left of the sandbox in its directories."""
        await in_own_thread(self._remove_sandbox, spec)

    async def update_sandbox(self, spec: SandboxSpec, resources: Resources) -> None:
        """Nothing: no rule holds the containers of a pod together.

        Though racct adds their use up in the pod's jail, rctl measures a process by the jail that it is in itself
        (rctl_proc_rule_to_racct in sys/kern/kern_rctl.c), and it forgets the rules of the jails above whenever the process
        changes its user (rctl_proc_ucred_changed).
        """

    async def create_container(self, spec: ContainerSpec, first: Callable[[], None] | None = None) -> None:
        """Make the root filesystem, the mounts, the jail and its limits."""
        await in_own_thread(self._create_container, spec, first)

    async def stop_container(self, spec: ContainerSpec) -> None:
        """Remove the jail, whatever still runs in it, its limits and its mounts."""
        await in_own_thread(self._stop_container, spec)

    async def remove_container(self, spec: ContainerSpec, then: Callable[[], None] | None = None) -> None:
        """Remove what is not files in the container's directory, too."""
        await in_own_thread(self._remove_container, spec, then)

    async def update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        """Apply new limits."""
        await asyncio.to_thread(self._update_container, spec, resources)

    async def usages(self, pods: Sequence[Measured]) -> Mapping[str, Usage | HostError]:
        """What pods and containers have used so far."""
        return await asyncio.to_thread(self._meter.usages, pods)

    async def root_usage(self, spec: ContainerSpec, check: Callable[[], None] = lambda: None) -> DiskUsage:
        """What the container's own files take."""
        return await asyncio.to_thread(self.snapshots.usage, spec, check)

    def device_of(self, path: str) -> str:
        """As mount(8) shows it."""
        return self._calls.mount_of(path).source

    async def unknown_sandboxes(self, sandboxes: Sequence[str]) -> Sequence[str]:
        """The pods whose jail is there."""
        return await in_own_thread(self._unknown_pods, set(sandboxes))

    async def leftovers(self, sandboxes: Sequence[str], containers: Sequence[str]) -> Sequence[str]:
        """Remove wardens, jails, mounts, limits and layers that belong to nobody."""
        removed = []
        async for spec, warden in self._wardens.unknown(self._runtime, sandboxes):
            if warden is not None:
                await self.stop_sandbox(spec, warden)
            await self.remove_sandbox(spec)
            removed.append(f"warden in {spec.runtime_directory}")
        with _host_errors("remove", "leftovers"):
            return removed + await in_own_thread(self._remove_unknown, set(sandboxes), set(containers))

    def _process_start(self, pid: int) -> str | None:
        started = self._calls.process_start(pid)
        return None if started is None else f"{self.boot_id()} {started}"

    # In a thread of their own

    def _make_pod(self, spec: SandboxSpec) -> int:
        Path(spec.runtime_directory).mkdir(mode=0o711, parents=True, exist_ok=True)
        root = Path(spec.directory, _EMPTY_ROOT)
        root.mkdir(mode=0o755, exist_ok=True)
        return self._jails.make_pod(spec, str(root))

    def _remove_pod(self, spec: SandboxSpec) -> None:
        name = jails.pod_name(spec.id)
        # Its containers' limits go with them: what all jails of the node have is not read here.
        self._jails.remove(name, f"sandbox {spec.id}", _DYING_SECONDS)
        self._limits.remove(name)
        self._meter.forget(name)

    def _remove_sandbox(self, spec: SandboxSpec) -> None:
        directory = Path(spec.runtime_directory)
        (directory / SOCKET_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's files
            directory.rmdir()

    def _create_container(self, spec: ContainerSpec, first: Callable[[], None] | None) -> None:
        if first is not None:
            first()
        name = jails.container_name(spec)
        try:
            self._check_emulation(spec)
            fib = self._jails.fib(spec)
            root = self.snapshots.prepare(spec)["source"]
            self._make_declared_volumes(spec, root)
            images = {mount.target: self._image_volume(mount) for mount in spec.mounts if mount.image_layers}
            tree = TreeBuilder(self._calls, spec, root, self._jails.policy.devfs_ruleset, images)
            jid = self._jails.make_container(spec, tree.build())
            self._limits.apply(name, jid, spec.resources)
            write_plan(Plan(spec, {"jail": name, "jid": jid, "fib": fib}))
        except BaseException as error:
            try:
                self._undo_container(spec)
            except HostError as second:
                error.add_note(f"and the undo failed: {second}")
            if isinstance(error, OSError):
                raise _host_error("create", f"container {spec.id}", error) from error
            raise

    def _stop_container(self, spec: ContainerSpec) -> None:
        name, subject = jails.container_name(spec), f"container {spec.id}"
        gone = self._jails.remove(name, subject, _DYING_SECONDS)
        self._limits.remove(name)
        self._meter.forget(name)
        with _host_errors("unmount", subject):
            # A dying jail holds its root.
            teardown.take_down(self._calls, spec.directory, f"{spec.directory}/rootfs", force=not gone)

    def _remove_container(self, spec: ContainerSpec, then: Callable[[], None] | None) -> None:
        self._stop_container(spec)
        with _host_errors("remove", f"container {spec.id}"):
            if not self.snapshots.plain:
                self.snapshots.discard(spec)
        if then is not None:
            then()

    def _undo_container(self, spec: ContainerSpec) -> None:
        self._stop_container(spec)
        with _host_errors("remove", f"container {spec.id}"):
            self.snapshots.discard(spec)
            remove_any(Path(spec.directory, VOLUMES))
            with contextlib.suppress(FileNotFoundError):
                Path(spec.directory, mounts.VIEW).rmdir()
            Path(spec.directory, PLAN_FILE).unlink(missing_ok=True)

    def _check_emulation(self, spec: ContainerSpec) -> None:
        missing = (
            [name for name in _EMULATION if not self._calls.has_module(name)] if spec.os == "linux" else []
        )
        if missing:
            raise HostError(
                "run",
                f"container {spec.id}",
                f"its image is for Linux, and {', '.join(missing)} are not loaded: "
                "kldload linux64 linprocfs linsysfs, and linux_enable=YES in rc.conf",
                errno.ENOEXEC,
            )

    def _image_volume(self, mount: MountSpec) -> str:
        """Where the image of a volume lies, or the part of it that is wanted."""
        root = self.snapshots.layer(mount.image_layers[-1])
        try:
            return str(resolve_beneath(root, mount.image_path or "/").resolve(strict=True))
        except OSError as error:
            raise UnfitRequestError(
                "mount on",
                mount.target,
                f"the image has no {mount.image_path}: {error.strerror}",
                error.errno,
            ) from error

    def _make_declared_volumes(self, spec: ContainerSpec, root: str) -> None:
        for volume in declared_volumes.of(spec):
            try:
                content = resolve_beneath(Path(root), volume.target).resolve(strict=True)
            except FileNotFoundError:
                declared_volumes.make(volume, None)
                continue
            if not content.is_dir():
                raise UnfitRequestError(
                    "mount on", volume.target, "the image declares it as a volume, and has a file there"
                )
            declared_volumes.make(volume, str(content))

    def _update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        wanted = wire.merged(spec.resources, resources)
        self._limits.apply(jails.container_name(spec), self._jid(spec), wanted, must=True)

    def _jid(self, spec: ContainerSpec) -> int:
        jail = self._jails.find(jails.container_name(spec))
        if jail is None:
            raise HostError("find the jail of", f"container {spec.id}", "it has ended", errno.ENOENT)
        return jail.jid

    def _unknown_pods(self, sandboxes: set[str]) -> list[str]:
        pods = (jails.pod_of(jail.name) for jail in self._jails.ours(str(self._state)))
        return [pod for pod in pods if pod and pod not in sandboxes]

    def _remove_unknown(self, sandboxes: set[str], containers: set[str]) -> list[str]:
        removed = []
        for jail in list(self._jails.ours(str(self._state))):
            if (pod := jails.pod_of(jail.name)) and pod not in sandboxes:
                self._jails.remove(jail.name, f"sandbox {pod}", _DYING_SECONDS)
                removed.append(f"jail {jail.name}")
            elif (container := jails.container_of(jail.name)) and container not in containers:
                self._jails.remove(jail.name, f"container {container}", _DYING_SECONDS)
                removed.append(f"jail {jail.name}")
        for name in self._limits.subjects():
            ours = jails.pod_of(name) or jails.container_of(name)
            if ours and self._jails.find(name, dying=True) is None:
                self._limits.remove(name)
                removed.append(f"limits of {name}")
        parent = self._state / "containers"
        for container in sorted(
            {Path(mount.target).relative_to(parent).parts[0] for mount in self._mounts(parent)}
        ):
            if container not in containers:
                directory = str(parent / container)
                teardown.take_down(self._calls, directory, f"{directory}/rootfs")
                removed.append(f"mounts of container {container}")
        return removed + self.snapshots.remove_unfinished() + self.snapshots.remove_unknown(containers)

    def _mounts(self, parent: Path) -> Iterator[Mount]:
        return (
            mount for mount in teardown.mounts_below(self._calls, str(parent)) if mount.target != str(parent)
        )


@contextlib.contextmanager
def _host_errors(operation: str, subject: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _host_error(operation, subject, error) from error


def _host_error(operation: str, subject: str, error: OSError) -> HostError:
    reason = error.strerror or str(error)
    return HostError(
        operation, subject, f"{reason}: {error.filename}" if error.filename else reason, error.errno
    )
