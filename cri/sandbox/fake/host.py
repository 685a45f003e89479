"""The host port on the kernel in memory: what a FreeBSD driver does, without FreeBSD."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from baustelle.removal import remove_tree
from cri.sandbox.fake.kernel import FakeKernel
from cri.sandbox.fake.warden import FakeWarden, jail_name
from cri.sandbox.host import (
    Condition,
    Features,
    Host,
    HostError,
    Measured,
    NetworkStack,
    Snapshotter,
    Warden,
)
from cri.sandbox.spec import (
    ContainerSpec,
    DiskUsage,
    PodAddresses,
    Resources,
    SandboxSpec,
)
from cri.sandbox.usage import CpuUsage, MemoryUsage, ProcessUsage, Usage

POD_CHILDREN = 64
"""children.max of a pod's jail."""


class FakeSnapshotter(Snapshotter):
    """Directories, whole."""

    kind = "copy"
    parallel = True
    overlay_whiteouts = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._chains: dict[str, DiskUsage] = {}

    async def chains(self) -> Mapping[str, DiskUsage]:
        """All committed layers."""
        return dict(self._chains)

    async def begin(self, chain_id: str, parent: str | None) -> Path:
        """A directory to unpack into."""
        path = self._path(chain_id)
        path.mkdir(parents=True)
        return path

    async def commit(self, chain_id: str) -> DiskUsage:
        """Keep it."""
        usage = DiskUsage(4096, 1)
        self._chains[chain_id] = usage
        return usage

    async def abort(self, chain_id: str) -> None:
        """Throw it away."""
        remove_tree(self._path(chain_id))

    async def remove(self, chain_id: str) -> None:
        """Throw it away later."""
        self._chains.pop(chain_id, None)
        remove_tree(self._path(chain_id))

    def _path(self, chain_id: str) -> Path:
        return self._directory / chain_id.replace(":", "-")


class FakeNetwork:
    """A pod network of counted addresses, with a socket held in the pod as the real one needs for a moment."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.attached: dict[str, str] = {}
        self._kernel = kernel
        self._next = 1

    async def attach(self, spec: SandboxSpec, warden: Warden) -> PodAddresses:
        """Give the pod an address."""
        try:
            self._kernel.socket(jail_name(spec.id))()
        except OSError as error:
            raise HostError("attach", f"sandbox {spec.id}", str(error), error.errno) from error
        self._next += 1
        self.attached[spec.id] = f"10.0.0.{self._next}"
        return PodAddresses((self.attached[spec.id],))

    async def is_attached(self, sandbox_id: str) -> bool:
        """Whether it has an address."""
        return sandbox_id in self.attached

    async def rebuild(self, spec: SandboxSpec, warden: Warden, addresses: Sequence[str]) -> bool:
        """Nothing is ever lost here."""
        return False

    async def release(self, sandbox_id: str) -> None:
        """Nothing to do: see `unknown_sandboxes`."""

    async def detach(self, sandbox_id: str) -> None:
        """Take it back."""
        self.attached.pop(sandbox_id, None)


class FakeHost(Host):
    """A node in memory."""

    name = "fake"
    features = Features(recursive_readonly_mounts=True, host_ipc=False, host_pid=False, image_volumes=True)

    def __init__(self, kernel: FakeKernel, directory: Path) -> None:
        self.kernel = kernel
        self.wardens: dict[str, FakeWarden] = {}
        self.snapshots: Snapshotter = FakeSnapshotter(directory / "snapshots")
        self._lost: Callable[[str], None] | None = None

    async def open(self, lost: Callable[[str], None]) -> None:
        """Remember whom to tell."""
        self._lost = lost

    async def close(self) -> None:
        """Pods go on."""

    def boot_id(self) -> str:
        """The fake kernel is never booted anew."""
        return "fake"

    async def condition(self) -> Condition:
        """Always ready."""
        return Condition(ok=True)

    async def create_sandbox(self, spec: SandboxSpec) -> Warden:
        """A persistent VNET jail and a warden."""
        jail = jail_name(spec.id)
        self._kernel_call(
            "create", spec.id, lambda: self.kernel.jail_set(jail, vnet=True, children_max=POD_CHILDREN)
        )
        warden = FakeWarden(self.kernel, jail)
        self.wardens[spec.id] = warden
        return warden

    async def find_warden(self, spec: SandboxSpec) -> Warden | None:
        """The warden that an earlier daemon started."""
        warden = self.wardens.get(spec.id)
        return warden if warden is not None and warden.alive else None

    def network_stack(self, spec: SandboxSpec, warden: Warden) -> NetworkStack:
        """The pod's stack."""
        assert isinstance(warden, FakeWarden)
        return warden.network

    async def network_attached(self, spec: SandboxSpec, warden: Warden) -> None:
        """Nothing waits for it."""

    async def stop_sandbox(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """Remove the jail with everything in it, and end the warden."""
        if jail_name(spec.id) in self.kernel.jails:
            for jail in [jail for jail in self.kernel.jails.values() if jail.parent == jail_name(spec.id)]:
                jail.mounts.clear()
            self._kernel_call("stop", spec.id, lambda: self.kernel.jail_remove(jail_name(spec.id)))
        if (own := self.wardens.pop(spec.id, None)) is not None:
            await own.shutdown()

    async def remove_sandbox(self, spec: SandboxSpec) -> None:
        """Nothing is left after stop."""

    async def update_sandbox(self, spec: SandboxSpec, resources: Resources) -> None:
        """There are no limits here."""

    async def create_container(self, spec: ContainerSpec, first: Callable[[], None] | None = None) -> None:
        """A child jail and its mounts."""
        if first is not None:
            await asyncio.to_thread(first)
        name = self._child(spec)
        self._kernel_call("create", spec.id, lambda: self.kernel.jail_set(name))
        try:
            for mount in spec.mounts:
                target = mount.target
                self._kernel_call("mount", spec.id, lambda target=target: self.kernel.mount(name, target))  # type: ignore[misc]
        except HostError:
            self.kernel.jails[name].mounts.clear()
            self.kernel.jail_remove(name)
            raise

    async def stop_container(self, spec: ContainerSpec) -> None:
        """Limits would go here."""

    async def remove_container(self, spec: ContainerSpec, then: Callable[[], None] | None = None) -> None:
        """Unmount and remove the child jail; succeeds on what is gone."""
        name = self._child(spec)
        jail = self.kernel.jails.get(name)
        if jail is not None:
            for target in reversed(list(jail.mounts)):
                self._kernel_call("unmount", spec.id, partial(self.kernel.unmount, name, target))
            self._kernel_call("remove", spec.id, lambda: self.kernel.jail_remove(name))
        if then is not None:
            await asyncio.to_thread(then)

    async def update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        """There are no limits here."""

    async def usages(self, pods: Sequence[Measured]) -> Mapping[str, Usage | HostError]:
        """Something, not nothing."""
        something = Usage(
            timestamp=time.time_ns(),
            cpu=CpuUsage(total=1),
            memory=MemoryUsage(usage=4096, working_set=4096),
            processes=ProcessUsage(processes=1),
        )
        return {
            one.id: something
            for pod in pods
            for one in (*pod.containers, *((pod.sandbox,) if pod.itself else ()))
        }

    async def root_usage(self, spec: ContainerSpec, check: Callable[[], None] = lambda: None) -> DiskUsage:
        """Something, not nothing."""
        return DiskUsage(4096, 1)

    def device_of(self, path: str) -> str:
        """There is one."""
        return "/dev/fake"

    async def unknown_sandboxes(self, sandboxes: Sequence[str]) -> Sequence[str]:
        """None: an interface goes with its jail here."""
        return ()

    async def leftovers(self, sandboxes: Sequence[str], containers: Sequence[str]) -> Sequence[str]:
        """Remove jails of ours that belong to none of these."""
        known = {jail_name(sandbox) for sandbox in sandboxes}
        strangers = [
            name for name in self.kernel.jails if name.partition(".")[0] not in known and "." not in name
        ]
        for name in strangers:
            self.kernel.jail_remove(name)
        return [f"jail {name}" for name in strangers]

    def kill_warden(self, sandbox_id: str) -> None:
        """For tests: the warden dies without a word, and its containers with it."""
        warden = self.wardens.pop(sandbox_id)
        warden.alive = False
        warden.lost()
        for process in [
            p for p in self.kernel.processes.values() if p.jail.startswith(jail_name(sandbox_id))
        ]:
            process.alive = False
            del self.kernel.processes[process.pid]
        if self._lost is not None:
            self._lost(sandbox_id)

    def _child(self, spec: ContainerSpec) -> str:
        return f"{jail_name(spec.sandbox_id)}.{jail_name(spec.id)}"

    def _kernel_call(self, operation: str, subject: str, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            raise HostError(operation, subject, error.strerror or str(error), error.errno) from error
