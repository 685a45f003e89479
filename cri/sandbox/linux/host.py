"""The Linux node: the port on top of wardens, cgroups and snapshots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from baustelle.removal import remove_tree
from cri.sandbox.host import Condition, Features, Host, HostError, NetworkStack, Warden, WardenGoneError
from cri.sandbox.linux.cgroups import Group, Hierarchies
from cri.sandbox.linux.snapshots import make_snapshotter
from cri.sandbox.snapshots import RootSnapshotter
from cri.sandbox.spec import ContainerSpec, DiskUsage, Resources, SandboxSpec, Usage
from cri.sandbox.warden import wardens
from cri.sandbox.warden.client import WardenClient
from cri.sandbox.warden.container import PLAN_FILE, write_plan
from cri.sandbox.warden.driver import Plan
from cri.sandbox.warden.network import WardenNetworkStack
from cri.sandbox.warden.spawning import Spawner
from cri.sandbox.warden.supervisor import SOCKET_NAME, socket_path

_OWN_PARENT = "/cri-jails"
"""The cgroup for pods that the kubelet made none for."""
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
    )
    snapshots: RootSnapshotter

    def __init__(self, state_dir: Path, runtime_dir: Path, snapshotter: str = "auto") -> None:
        """`runtime_dir` holds a directory per sandbox, whose name is the beginning of the sandbox's id."""
        self._runtime = runtime_dir
        self._hierarchies = Hierarchies.detect()
        self._spawner = Spawner("cri.sandbox.linux.driver")
        self._lost: Callable[[str], None] = lambda _: None
        state_dir.mkdir(parents=True, exist_ok=True)
        self.snapshots = make_snapshotter(state_dir, snapshotter)
        self._ledger = CgroupLedger(state_dir / "cgroups", self._hierarchies)

    async def open(self, lost: Callable[[str], None]) -> None:
        """Start the spawner."""
        self._lost = lost
        self._spawner.start()

    async def close(self) -> None:
        """End the spawner; leave no cgroup without a pod."""
        await asyncio.to_thread(self._spawner.close)
        await asyncio.to_thread(self._hierarchies.group(_OWN_PARENT).remove_if_empty)

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
        return Condition(ok=True)

    async def create_sandbox(self, spec: SandboxSpec) -> Warden:
        """Have a warden forked, which makes the namespaces."""
        os.makedirs(spec.runtime_directory, mode=0o711, exist_ok=True)  # noqa: PTH103
        return await self._spawner.spawn(spec, self._lost)

    async def find_warden(self, spec: SandboxSpec) -> Warden | None:
        """The warden of a sandbox made by an earlier daemon."""
        return await WardenClient.connect(spec, socket_path(spec), self._lost)

    def network_stack(self, spec: SandboxSpec, warden: Warden) -> NetworkStack:
        """The pod's network namespace."""
        assert isinstance(warden, WardenClient)
        if not warden.descriptors:
            raise WardenGoneError("use the network of", f"sandbox {spec.id}", "its warden has ended")
        return LinuxNetworkStack(warden)

    async def stop_sandbox(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """End the warden and all that runs below it; by cgroup, if the warden cannot do it."""
        await wardens.end(spec, warden)
        await asyncio.to_thread(self._stop_sandbox, spec)

    async def remove_sandbox(self, spec: SandboxSpec) -> None:
        """Remove what is left of the sandbox in its directories."""
        await asyncio.to_thread(self._remove_sandbox, spec)

    async def create_container(self, spec: ContainerSpec) -> None:
        """Make the root filesystem and the cgroups."""
        await asyncio.to_thread(self._create_container, spec)

    async def stop_container(self, spec: ContainerSpec) -> None:
        """Remove the cgroups; whatever still is in there is killed."""
        await asyncio.to_thread(self._ledger.remove, spec.id)

    async def remove_container(self, spec: ContainerSpec) -> None:
        """Remove the root filesystem."""
        await asyncio.to_thread(self._remove_container, spec)

    async def update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        """Apply new limits."""
        await asyncio.to_thread(self._group(spec).apply, resources)

    async def container_usage(self, spec: ContainerSpec) -> Usage:
        """What a running container has used."""
        return await asyncio.to_thread(self._group(spec).usage)

    async def root_usage(self, spec: ContainerSpec) -> DiskUsage:
        """What the container's own files take."""
        return await asyncio.to_thread(self.snapshots.usage, spec)

    async def unknown_sandboxes(self, sandboxes: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """None: an interface goes with its namespace."""
        return ()

    async def leftovers(self, sandboxes: Sequence[str], containers: Sequence[str]) -> Sequence[str]:
        """Remove wardens, cgroups and layers that belong to nobody."""
        removed = []
        async for spec, warden in wardens.unknown(self._runtime, sandboxes):
            if warden is not None:
                await self.stop_sandbox(spec, warden)
            await self.remove_sandbox(spec)
            removed.append(f"warden in {spec.runtime_directory}")
        for container_id in await asyncio.to_thread(self._ledger.entries):
            if container_id not in containers:
                await asyncio.to_thread(self._ledger.remove, container_id)
                removed.append(f"cgroups of container {container_id}")
        return removed + await asyncio.to_thread(self.snapshots.remove_unfinished)

    def _group(self, spec: ContainerSpec) -> Group:
        return self._hierarchies.group(_cgroup_path(spec))

    def _stop_sandbox(self, spec: SandboxSpec) -> None:
        for container_id, (sandbox_id, _) in self._ledger.entries().items():
            if sandbox_id == spec.id:
                self._ledger.remove(container_id)
        # Of a pod that has no parent from the kubelet.
        self._hierarchies.group(_own_parent(spec.id)).remove()

    def _remove_sandbox(self, spec: SandboxSpec) -> None:
        for name in (SOCKET_NAME, "shm"):
            path = Path(spec.runtime_directory, name)
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's files
            Path(spec.runtime_directory).rmdir()

    def _create_container(self, spec: ContainerSpec) -> None:
        group = self._group(spec)
        self._ledger.add(spec)
        try:
            group.create()
            group.apply(spec.resources)
            root = self.snapshots.prepare(spec)
            cgroup = {"version": group.version, "directories": group.directories}
            write_plan(Plan(spec, {"root": root, "cgroup": cgroup}))
        except BaseException as error:
            self._ledger.remove(spec.id)
            self._remove_container(spec)
            if isinstance(error, OSError):
                subject = f"container {spec.id}"
                raise HostError(
                    "create", subject, f"{error.strerror}: {error.filename}", error.errno
                ) from error
            raise

    def _remove_container(self, spec: ContainerSpec) -> None:
        self._ledger.remove(spec.id)
        self.snapshots.discard(spec)
        Path(spec.directory, PLAN_FILE).unlink(missing_ok=True)


class CgroupLedger:
    """Which cgroups are ours, on disk before they are made: the kubelet's groups hold others too. Its methods block."""

    def __init__(self, directory: Path, hierarchies: Hierarchies) -> None:
        self._directory = directory
        self._hierarchies = hierarchies
        directory.mkdir(exist_ok=True, mode=0o700)

    def add(self, spec: ContainerSpec) -> None:
        """Note the cgroup of a container."""
        (self._directory / spec.id).write_text(json.dumps([spec.sandbox_id, _cgroup_path(spec)]))

    def entries(self) -> dict[str, tuple[str, str]]:
        """Sandbox and path by container."""
        found = {}
        for path in self._directory.iterdir():
            try:
                sandbox_id, cgroup = json.loads(path.read_text())
            except FileNotFoundError:
                continue
            except ValueError:  # torn by a crash, before any cgroup was made
                path.unlink(missing_ok=True)
                continue
            found[path.name] = (sandbox_id, cgroup)
        return found

    def remove(self, container_id: str) -> None:
        """KILL what is in a container's cgroups, remove them, and forget them."""
        path = self._directory / container_id
        try:
            _, cgroup = json.loads(path.read_text())
        except FileNotFoundError:
            return
        group = self._hierarchies.group(cgroup)
        if not group.kill_and_wait(_KILL_SECONDS):
            pids = ", ".join(map(str, sorted(group.processes())))
            raise HostError("end", f"container {container_id}", f"processes {pids} cannot be killed")
        group.remove()
        path.unlink(missing_ok=True)


class LinuxNetworkStack(WardenNetworkStack):
    """A network namespace, by descriptor."""

    def __init__(self, warden: WardenClient) -> None:
        super().__init__(warden, os.dup(warden.descriptors[0]), f"/proc/{warden.pid}/ns/net")

    def close(self) -> None:
        """Close the descriptor."""
        if self.move_target >= 0:
            os.close(self.move_target)
            self.move_target = -1


def _own_parent(sandbox_id: str) -> str:
    return f"{_OWN_PARENT}/{sandbox_id}"


def _cgroup_path(spec: ContainerSpec) -> str:
    return f"{spec.limits_parent or _own_parent(spec.sandbox_id)}/{spec.id}"
