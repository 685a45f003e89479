"""The Linux node: the port on top of wardens, cgroups and snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from baustelle.removal import remove_tree
from cri.sandbox import wire
from cri.sandbox.durable import remove_any
from cri.sandbox.host import (
    Condition,
    Features,
    Host,
    HostError,
    Measured,
    NetworkStack,
    Warden,
    WardenGoneError,
)
from cri.sandbox.linux import (
    device_access,
    device_nodes,
    filters,
    image_trees,
    image_volumes,
    stated,
    sysctls,
)
from cri.sandbox.linux.block_devices import device_name
from cri.sandbox.linux.cgroup_hierarchies import OWN_PARENT, Hierarchies, init_group, own_parent
from cri.sandbox.linux.cgroup_ledger import CgroupLedger, container_group
from cri.sandbox.linux.cgroups import Group
from cri.sandbox.linux.meter import Meter, Stack
from cri.sandbox.linux.seccomp import selection
from cri.sandbox.linux.snapshots import make_snapshotter
from cri.sandbox.places import VOLUMES
from cri.sandbox.snapshots import RootSnapshotter
from cri.sandbox.spec import ContainerSpec, DiskUsage, Resources, SandboxSpec, Sharing
from cri.sandbox.usage import Usage
from cri.sandbox.warden.client import WardenClient
from cri.sandbox.warden.container import PLAN_FILE, read_plan, write_plan
from cri.sandbox.warden.driver import Plan
from cri.sandbox.warden.network import WardenNetworkStack
from cri.sandbox.warden.spawning import Spawner
from cri.sandbox.warden.supervisor import SOCKET_NAME
from cri.sandbox.warden.wardens import Wardens
from cri.threads import in_own_thread

log = structlog.get_logger(__name__)

_KILL_SECONDS = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LinuxHost(Host):
    """A Linux node. Pods are namespaces that their warden holds; containers are processes with a mount namespace."""

    name = "linux"
    features = Features(
        recursive_readonly_mounts=True,
        mount_propagation=True,
        host_pid=True,
        host_ipc=True,
        sysctls=True,
        image_volumes=True,
    )
    snapshots: RootSnapshotter

    def __init__(self, state_dir: Path, runtime_dir: Path, snapshotter: str = "auto") -> None:
        """`runtime_dir` holds a directory per sandbox, whose name is the beginning of the sandbox's id."""
        self._runtime = runtime_dir
        self._hierarchies = Hierarchies.detect()
        self.features = replace(
            self.features,
            hugepages=self._hierarchies.hugepages(),
            unified=None if self._hierarchies.v2 else frozenset(),
            seccomp=not (missing := selection.missing()),
            seccomp_missing=missing,
        )
        self._spawner = Spawner("cri.sandbox.linux.driver")
        self._wardens = Wardens(self._spawner, process_start)
        state_dir.mkdir(parents=True, exist_ok=True)
        self.snapshots = make_snapshotter(state_dir, snapshotter)
        self._ledger = CgroupLedger(state_dir / "cgroups", self._hierarchies)
        self._meter = Meter(self._hierarchies)

    async def open(self, lost: Callable[[str], None]) -> None:
        """Start the spawner."""
        _tell_what_is_kept()
        self._wardens.lost = lost
        self._spawner.start()

    async def close(self) -> None:
        """End the spawner; leave no cgroup without a pod."""
        await asyncio.to_thread(self._spawner.close)
        await asyncio.to_thread(self._meter.close)
        await asyncio.to_thread(self._hierarchies.group(OWN_PARENT).remove_if_empty)

    def boot_id(self) -> str:
        """See `Host`: random(4)."""
        try:
            return _BOOT_ID.read_text().strip()
        except OSError as error:
            raise HostError("read", str(_BOOT_ID), error.strerror or str(error), error.errno) from error

    async def condition(self) -> Condition:
        """Whether pods can be run."""
        if os.geteuid() != 0:
            return Condition(
                ok=False, reason="NotRoot", message="cri-jails must run as root to make namespaces"
            )
        if missing := self._hierarchies.missing_controllers():
            message = (
                f"no cgroup controller {', '.join(missing)}: its limits are not enforced; mount or enable it"
            )
            return Condition(ok=True, reason="CgroupControllersMissing", message=message)
        if self.features.seccomp_missing:
            message = f"containers with a seccomp profile are refused: {self.features.seccomp_missing}"
            return Condition(ok=True, reason="SeccompMissing", message=message)
        return Condition(ok=True)

    async def create_sandbox(self, spec: SandboxSpec) -> Warden:
        """Have a warden forked, which makes the namespaces."""
        sysctls.check(spec.sysctls, spec.namespaces)
        os.makedirs(spec.runtime_directory, mode=0o700, exist_ok=True)  # noqa: PTH103
        return await self._wardens.spawn(spec)

    async def find_warden(self, spec: SandboxSpec) -> Warden | None:
        """The warden of a sandbox made by an earlier daemon."""
        return await self._wardens.find(spec)

    def network_stack(self, spec: SandboxSpec, warden: Warden) -> NetworkStack:
        """The pod's network namespace."""
        assert isinstance(warden, WardenClient)
        if not warden.descriptors:
            raise WardenGoneError("use the network of", f"sandbox {spec.id}", "its warden has ended")
        return LinuxNetworkStack(warden)

    async def network_attached(self, spec: SandboxSpec, warden: Warden) -> None:
        """Set the sysctls of the pod's interfaces, which come and go with them."""
        for name, value in sysctls.of_interfaces(spec.sysctls).items():
            try:
                await warden.sysctl(name, value)
            except HostError as error:
                if error.errno == errno.ENOENT and not await _has_interface(
                    warden, sysctls.interface_of(name)
                ):
                    raise sysctls.no_interface(name) from error
                raise

    async def stop_sandbox(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """End the warden and all that runs below it; by cgroup, if the warden cannot do it."""
        await self._wardens.end(spec, warden)
        await asyncio.to_thread(self._stop_sandbox, spec)

    async def remove_sandbox(self, spec: SandboxSpec) -> None:
        """Remove what is left of the sandbox in its directories."""
        await asyncio.to_thread(self._remove_sandbox, spec)

    async def update_sandbox(self, spec: SandboxSpec, resources: Resources) -> None:
        """Apply new limits to the cgroup of a pod that the kubelet made none for.

        One that it has made is the kubelet's, which sets the limits itself once this has been answered; and others may be in there.
        """
        if not spec.limits_parent:
            await asyncio.to_thread(self._update_sandbox, spec, resources)

    async def create_container(self, spec: ContainerSpec, first: Callable[[], None] | None = None) -> None:
        """Choose the filter; make volumes, the root filesystem and the cgroups."""
        await in_own_thread(self._create_container, spec, first)

    async def stop_container(self, spec: ContainerSpec) -> None:
        """Remove the cgroups; whatever still is in there is killed."""
        await asyncio.to_thread(self._stop_container, spec)

    async def remove_container(self, spec: ContainerSpec, then: Callable[[], None] | None = None) -> None:
        """Remove the cgroups; all else is files in the container's directory."""
        await asyncio.to_thread(self._remove_container, spec, then)

    async def update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        """Apply new limits, to what runs too."""
        await asyncio.to_thread(self._update_container, spec, resources)

    async def usages(self, pods: Sequence[Measured]) -> Mapping[str, Usage | HostError]:
        """What pods and containers have used so far."""
        return await asyncio.to_thread(self._meter.usages, pods, _stacks(pods))

    async def root_usage(self, spec: ContainerSpec, check: Callable[[], None] = lambda: None) -> DiskUsage:
        """What the container's own files take."""
        return await asyncio.to_thread(self.snapshots.usage, spec, check)

    def device_of(self, path: str) -> str:
        """The path of the device, or its numbers where it has none (btrfs, ZFS)."""
        device = os.stat(path).st_dev  # noqa: PTH116
        numbers = f"{os.major(device)}:{os.minor(device)}"
        name = device_name(numbers)
        return numbers if name == numbers else f"/dev/{name}"

    async def unknown_sandboxes(self, sandboxes: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """None: an interface goes with its namespace."""
        return ()

    async def leftovers(self, sandboxes: Sequence[str], containers: Sequence[str]) -> Sequence[str]:
        """Remove wardens, cgroups and layers that belong to nobody."""
        removed = []
        known = set(containers)
        async for spec, warden in self._wardens.unknown(self._runtime, sandboxes):
            if warden is not None:
                await self.stop_sandbox(spec, warden)
            await self.remove_sandbox(spec)
            removed.append(f"warden in {spec.runtime_directory}")
        for entry in await asyncio.to_thread(self._ledger.entries):
            if entry.container_id not in known:
                await asyncio.to_thread(self._ledger.remove_entry, entry)
                removed.append(f"cgroups of container {entry.container_id}")
        return removed + await asyncio.to_thread(self.snapshots.remove_unfinished)

    def _group(self, spec: ContainerSpec) -> Group:
        return container_group(self._hierarchies, spec)

    def _stop_sandbox(self, spec: SandboxSpec) -> None:
        # Of a pod that has no parent from the kubelet; in one that has, each container's own end has cleared its group.
        groups = [self._hierarchies.group(own_parent(spec.id))]
        if spec.namespaces.pid is Sharing.POD:
            groups.insert(0, init_group(self._hierarchies, spec))
        for group in groups:
            if not group.kill_and_wait(_KILL_SECONDS):
                pids = ", ".join(map(str, sorted(group.processes())))
                raise HostError("end", f"sandbox {spec.id}", f"processes {pids} cannot be killed")
            group.remove()
        self._meter.forget(spec.id)

    def _remove_sandbox(self, spec: SandboxSpec) -> None:
        self._meter.forget(
            spec.id
        )  # once more: of a group that the kubelet has made, somebody may have asked meanwhile
        for name in (SOCKET_NAME, "shm"):
            path = Path(spec.runtime_directory, name)
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's files
            Path(spec.runtime_directory).rmdir()

    def _stop_container(self, spec: ContainerSpec) -> None:
        self._ledger.remove(spec)
        self._meter.forget(spec.id)

    def _remove_container(self, spec: ContainerSpec, then: Callable[[], None] | None) -> None:
        self._stop_container(spec)
        if then is not None:
            then()

    def _update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        whole = wire.merged(spec.resources, resources)
        if resources.oom_score_adj == spec.resources.oom_score_adj:
            # A kubelet repeats it with each resize. Where it could not be lowered, the start did without it, and so does this;
            # and what a program has made of its own is left alone.
            resources = replace(resources, oom_score_adj=None)

        def note() -> None:
            """For the warden, which gives it to the first process at its start."""
            if resources.oom_score_adj is None:
                return
            plan = read_plan(spec.directory)
            write_plan(replace(plan, spec=replace(plan.spec, resources=whole)))

        self._group(spec).apply(resources, whole, note)

    def _update_sandbox(self, spec: SandboxSpec, resources: Resources) -> None:
        group = self._hierarchies.group(own_parent(spec.id))
        group.make()
        group.apply(resources, wire.merged(spec.resources or Resources(), resources))

    def _create_container(self, spec: ContainerSpec, first: Callable[[], None] | None) -> None:
        if first is not None:
            first()
        seccomp = selection.choose(spec.security) if spec.security.seccomp else None
        if image_volumes.wanted(spec):
            image_volumes.prepare(spec, self.snapshots)
        group = self._group(spec)
        self._ledger.add(spec)
        try:
            group.create()
            ruled = self._restrict_devices(spec, group)
            group.create_inner()
            group.apply(spec.resources)
            host = {
                "root": self.snapshots.prepare(spec),
                "cgroup": group.inner.note(),
                "device_rules": ruled,
                "images": image_volumes.layers_of_mounts(spec, self.snapshots),
                "seccomp": filters.record(seccomp),
            }
            write_plan(Plan(_for_wardens(spec), host))
        except BaseException as error:
            self._ledger.remove(spec)
            self.snapshots.discard(spec)
            for name in (PLAN_FILE, VOLUMES, image_trees.PLACE):
                remove_any(Path(spec.directory, name))
            if isinstance(error, OSError):
                subject = f"container {spec.id}"
                raise HostError(
                    "create", subject, f"{error.strerror}: {error.filename}", error.errno
                ) from error
            raise

    def _restrict_devices(self, spec: ContainerSpec, group: Group) -> bool:
        """Whether its cgroup keeps the container from devices that it was not given."""
        if spec.security.privileged:
            return False
        devices = device_nodes.look_up(spec.devices)
        ruled = device_access.restrict(group, device_access.rules(devices))
        device_access.check(devices, ruled=ruled)
        return ruled


def _stacks(pods: Sequence[Measured]) -> dict[str, Stack]:
    """The network namespaces of pods that have one; asked of their wardens on the loop, which may close what they hold."""
    return {
        pod.sandbox.id: Stack(warden.pid, os.fstat(warden.descriptors[0]).st_ino)
        for pod in pods
        if isinstance(warden := pod.warden, WardenClient)
        and warden.descriptors
        and pod.itself
        and pod.sandbox.namespaces.network is not Sharing.NODE
    }


def _tell_what_is_kept() -> None:
    for inherited in stated.kept(Path("/proc/self/status").read_text()):
        log.warning("containers inherit what the daemon was started with", inherited=inherited)


class LinuxNetworkStack(WardenNetworkStack):
    """A network namespace, by descriptor."""

    def __init__(self, warden: WardenClient) -> None:
        super().__init__(warden, os.dup(warden.descriptors[0]), f"/proc/{warden.pid}/ns/net")

    def close(self) -> None:
        """Close the descriptor."""
        if self.move_target >= 0:
            os.close(self.move_target)
            self.move_target = -1


def _for_wardens(spec: ContainerSpec) -> ContainerSpec:
    """The spec as its plan has it.

    Wardens of releases without filters do not know the field. One that has been asked for RuntimeDefault goes on as when its pod was
    made, without; one that has been asked for a profile of the node refuses.
    """
    if spec.security.seccomp is None or spec.security.seccomp.path:
        return spec
    return replace(spec, security=replace(spec.security, seccomp=None))


def process_start(pid: int) -> str | None:
    """When a process was started, and in which boot; None if it is gone or a zombie. Raises OSError.

    Field 22 of proc_pid_stat(5), in clock ticks since the boot. The name before it may hold anything, parentheses too.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in (b"Z", b"X") else f"{_BOOT_ID.read_text().strip()} {fields[18].decode()}"


async def _has_interface(warden: Warden, name: str) -> bool:
    """Whether the pod has an interface; each has this."""
    try:
        await warden.sysctl(f"net/ipv4/conf/{name}/forwarding")
    except HostError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True
