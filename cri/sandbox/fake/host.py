"""The host port on the kernel in memory: what a FreeBSD driver does, without FreeBSD."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from baustelle.removal import remove_tree
from cri.sandbox import wire
from cri.sandbox.fake.kernel import FakeKernel
from cri.sandbox.host import (
    Condition,
    ContainerState,
    Exec,
    Features,
    Host,
    HostError,
    NetworkStack,
    Snapshotter,
    StartError,
    Warden,
    WardenGoneError,
)
from cri.sandbox.spec import (
    ContainerSpec,
    Credentials,
    DiskUsage,
    ExitRecord,
    PodAddresses,
    ProcessSpec,
    Resources,
    SandboxSpec,
    Started,
    Usage,
)

POD_CHILDREN = 64
"""children.max of a pod's jail."""


class FakeWarden(Warden):
    """A warden whose processes are the fake kernel's. It survives `disconnect`, as the real one does."""

    def __init__(self, kernel: FakeKernel, jail: str) -> None:
        self.pid = 1
        self.alive = True
        self.network = FakeNetworkStack()
        self._kernel = kernel
        self._jail = jail
        self._started: dict[str, Started] = {}
        self._exited: dict[str, ExitRecord] = {}
        self._news: asyncio.Queue[ExitRecord | None] = asyncio.Queue()

    async def containers(self) -> Sequence[ContainerState]:
        """All containers started so far."""
        self._check()
        return [ContainerState(name, self._started[name], self._exited.get(name)) for name in self._started]

    async def start(self, container: ContainerSpec) -> Started:
        """Start the first process."""
        self._check()
        directory = Path(container.directory)

        def ended(code: int, signal: int) -> None:
            record = ExitRecord(container.id, code, time.time_ns(), signal=signal)
            wire.write_exit_record(directory, record)
            self._exited[container.id] = record
            self._news.put_nowait(record)

        try:
            pid = self._kernel.spawn(self._child(container.id), container.process.argv, ended)
        except OSError as error:
            raise StartError(
                "start", f"container {container.id}", error.strerror or "", error.errno
            ) from error
        started = Started(pid, time.time_ns(), Credentials(0, 0))
        self._started[container.id] = started
        return started

    async def exec(
        self,
        container_id: str,
        process: ProcessSpec,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
    ) -> Exec:
        """Start a process beside the first; it prints nothing."""
        self._check()
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def tell(code: int, _signal: int) -> None:
            if not ended.done():
                ended.set_result(code)

        try:
            pid = self._kernel.spawn(self._child(container_id), process.argv, tell)
        except OSError as error:
            raise StartError(
                "exec in", f"container {container_id}", error.strerror or "", error.errno
            ) from error
        return FakeExec(self._kernel, pid, ended)

    async def signal(self, container_id: str, signal: int) -> None:
        """Signal the first process."""
        self._check()
        try:
            self._kernel.kill(self._started[container_id].pid, signal)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise HostError("signal", f"container {container_id}", str(error), error.errno) from error

    async def kill(self, container_id: str) -> None:
        """KILL everything in the container."""
        self._check()
        self._kernel.kill_all(self._child(container_id))

    async def reopen_log(self, container_id: str) -> None:
        """There are no logs here."""
        self._check()
        if container_id not in self._started:
            raise HostError("reopen log of", f"container {container_id}", "it was never started")

    async def forget(self, container_id: str) -> None:
        """Drop an ended container."""
        self._check()
        self._started.pop(container_id, None)
        self._exited.pop(container_id, None)

    async def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """A socket of the test's own process."""
        self._check()
        return socket.socket(family, type_, protocol)

    async def sysctl(self, name: str, value: str | None = None) -> str:
        """A variable in memory."""
        self._check()
        return self.network.sysctl(name, value)

    async def exits(self) -> AsyncIterator[ExitRecord]:
        """Ends as they happen."""
        news = self._news
        while (record := await news.get()) is not None:
            yield record

    async def shutdown(self) -> None:
        """End."""
        self.alive = False
        self._news.put_nowait(None)

    async def disconnect(self) -> None:
        """Stop telling this daemon; processes go on, and the next daemon is told."""
        self._news.put_nowait(None)
        self._news = asyncio.Queue()

    def _child(self, container_id: str) -> str:
        return f"{self._jail}.{_jail_name(container_id)}"

    def _check(self) -> None:
        if not self.alive:
            raise WardenGoneError("talk to", f"warden of {self._jail}", "it has ended")


class FakeExec(Exec):
    """An exec'd process of the fake kernel."""

    def __init__(self, kernel: FakeKernel, pid: int, ended: asyncio.Future[int]) -> None:
        self.pid = pid
        self._kernel = kernel
        self._ended = ended

    async def wait(self) -> int:
        """Wait for the end."""
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """KILL it."""
        if not self._ended.done():
            self._kernel.kill(self.pid, 9)

    async def close(self) -> None:
        """KILL it if it still runs."""
        await self.kill()


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


class FakeNetworkStack(NetworkStack):
    """The stack of a fake pod: it has whatever variable it is asked for, 0 until that is set."""

    def __init__(self) -> None:
        self.move_target = -1
        self.name = "fake"
        self.sysctls: dict[str, str] = {}

    def socket(self, family: int, type_: int, protocol: int = 0) -> socket.socket:
        """A socket of the test's own process."""
        return socket.socket(family, type_, protocol)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """A variable in memory."""
        if not name.startswith("net."):
            raise PermissionError(errno.EPERM, "only net.* belongs to a pod's network", f"sysctl {name}")
        before = self.sysctls.get(name, "0")
        if value is not None:
            self.sysctls[name] = value
        return before

    def close(self) -> None:
        """There is nothing to let go of."""


class FakeNetwork:
    """A pod network of counted addresses, with a socket held in the pod as the real one needs for a moment."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.attached: dict[str, str] = {}
        self._kernel = kernel
        self._next = 1

    async def attach(self, spec: SandboxSpec, warden: Warden) -> PodAddresses:
        """Give the pod an address."""
        try:
            self._kernel.socket(_jail_name(spec.id))()
        except OSError as error:
            raise HostError("attach", f"sandbox {spec.id}", str(error), error.errno) from error
        self._next += 1
        self.attached[spec.id] = f"10.0.0.{self._next}"
        return PodAddresses((self.attached[spec.id],))

    async def is_attached(self, sandbox_id: str) -> bool:
        """Whether it has an address."""
        return sandbox_id in self.attached

    async def release(self, sandbox_id: str) -> None:
        """Nothing to do: see `unknown_sandboxes`."""

    async def detach(self, sandbox_id: str) -> None:
        """Take it back."""
        self.attached.pop(sandbox_id, None)


class FakeHost(Host):
    """A node in memory."""

    name = "fake"
    features = Features(recursive_readonly_mounts=True, host_ipc=False, host_pid=False)

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
        jail = _jail_name(spec.id)
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

    async def stop_sandbox(self, spec: SandboxSpec, warden: Warden | None) -> None:
        """Remove the jail with everything in it, and end the warden."""
        if _jail_name(spec.id) in self.kernel.jails:
            for jail in [jail for jail in self.kernel.jails.values() if jail.parent == _jail_name(spec.id)]:
                jail.mounts.clear()
            self._kernel_call("stop", spec.id, lambda: self.kernel.jail_remove(_jail_name(spec.id)))
        if (own := self.wardens.pop(spec.id, None)) is not None:
            await own.shutdown()

    async def remove_sandbox(self, spec: SandboxSpec) -> None:
        """Nothing is left after stop."""

    async def create_container(self, spec: ContainerSpec) -> None:
        """A child jail and its mounts."""
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

    async def remove_container(self, spec: ContainerSpec) -> None:
        """Unmount and remove the child jail; succeeds on what is gone."""
        name = self._child(spec)
        jail = self.kernel.jails.get(name)
        if jail is None:
            return
        for target in reversed(list(jail.mounts)):
            self._kernel_call("unmount", spec.id, lambda target=target: self.kernel.unmount(name, target))  # type: ignore[misc]
        self._kernel_call("remove", spec.id, lambda: self.kernel.jail_remove(name))

    async def update_container(self, spec: ContainerSpec, resources: Resources) -> None:
        """There are no limits here."""

    async def container_usage(self, spec: ContainerSpec) -> Usage:
        """Something, not nothing."""
        return Usage(timestamp=time.time_ns(), cpu_nanoseconds=1, memory_usage=4096, memory_working_set=4096)

    async def root_usage(self, spec: ContainerSpec) -> DiskUsage:
        """Something, not nothing."""
        return DiskUsage(4096, 1)

    async def unknown_sandboxes(self, sandboxes: Sequence[str]) -> Sequence[str]:
        """None: an interface goes with its jail here."""
        return ()

    async def leftovers(self, sandboxes: Sequence[str], containers: Sequence[str]) -> Sequence[str]:
        """Remove jails of ours that belong to none of these."""
        known = {_jail_name(sandbox) for sandbox in sandboxes}
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
        for process in [
            p for p in self.kernel.processes.values() if p.jail.startswith(_jail_name(sandbox_id))
        ]:
            process.alive = False
            del self.kernel.processes[process.pid]
        if self._lost is not None:
            self._lost(sandbox_id)

    def _child(self, spec: ContainerSpec) -> str:
        return f"{_jail_name(spec.sandbox_id)}.{_jail_name(spec.id)}"

    def _kernel_call(self, operation: str, subject: str, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            raise HostError(operation, subject, error.strerror or str(error), error.errno) from error


def _jail_name(identifier: str) -> str:
    """A jail's name must not be all digits, or it would be its jid (jail(8), "name")."""
    return f"c{identifier}"
