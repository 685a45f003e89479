"""A node's kubelet, as its runtime sees it: the duties of the other modules, put together.

`Kubelet.step` is one turn of its loop: a relist, and a round of work for every pod that something has happened to. Tests call it
as often as they want, so a kubelet's second takes as long as the runtime does.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cri.api.runtime import v1
from tests.kubelet import actions
from tests.kubelet.client import Runtime
from tests.kubelet.collection import ContainerCollection, ImageCollection
from tests.kubelet.configs import Places
from tests.kubelet.container_logs import Rotation
from tests.kubelet.manager import RuntimeManager, RuntimeViolationError
from tests.kubelet.pleg import Cache, Event, EventedPleg, GenericPleg
from tests.kubelet.pod_cgroups import PodCgroups
from tests.kubelet.prober import Prober
from tests.kubelet.specs import Pod
from tests.kubelet.statuses import PodStatus, State
from tests.kubelet.summary import Statistics

RELIST_SECONDS = 0.1
"""A tenth of the kubelet's, for tests that wait for something."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a kubelet has learnt at its start."""

    version: Any
    status: Any
    cgroup_driver: int
    sandboxes: int
    containers: int


class Kubelet:
    """One node's. Close it."""

    def __init__(
        self, socket: Path, directory: Path, cgroup_root: str, back_off: actions.BackOff | None = None
    ) -> None:
        """`directory` has everything that a kubelet keeps in /var; `cgroup_root` is made, and removed at the end."""
        self.runtime = Runtime(socket)
        self.places = Places(directory / "kubelet", directory / "pods-logs")
        self.cgroups = PodCgroups(cgroup_root)
        self.manager = RuntimeManager(self.runtime, self.places, self.cgroups, back_off)
        self.cache = Cache()
        self.pleg = GenericPleg(self.manager, self.cache)
        self.evented = EventedPleg(self.runtime, self.cache)
        self.rotation = Rotation(self.runtime)
        self.prober = Prober(self.runtime)
        self.statistics = Statistics(self.runtime)
        self.images = ImageCollection(self.manager)
        self.collection = ContainerCollection(self.manager, lambda uid: uid not in self.pods)
        self.pods: dict[str, Pod] = {}
        """What the API server has assigned to the node, by uid."""
        self.unreachable = 0
        """Turns in which the runtime did not answer."""
        self._due: dict[str, float] = {}
        """When a pod is to be looked at though nothing has happened to it (monotonic)."""

    # -- the node

    async def start(self, pod_cidr: str = "") -> NodeInfo:
        """What a kubelet asks before it takes pods. Raises RuntimeViolationError if it would not take any.

        The cgroup driver first (cmd/kubelet), the version (kuberuntime), the status until both conditions hold (updateRuntimeUp),
        what runs already (cm/helpers.go), then the node's addresses, once the API server has given it some.
        """
        driver = (await self.runtime("RuntimeConfig")).linux.cgroup_driver
        version = await self.runtime("Version", version="0.1.0")
        if version.version != "0.1.0" or version.runtime_api_version != "v1":
            raise RuntimeViolationError(f"no version of a runtime that is supported: {version}")
        status = await self.check_runtime()
        sandboxes = await self.runtime("ListPodSandbox")
        containers = await self.runtime("ListContainers")
        await self.images.filesystem()
        await self.images.detect()
        if pod_cidr:
            network = v1.NetworkConfig(pod_cidr=pod_cidr)
            await self.runtime("UpdateRuntimeConfig", runtime_config=v1.RuntimeConfig(network_config=network))
        return NodeInfo(version, status, driver, len(sandboxes.items), len(containers.containers))

    async def check_runtime(self) -> Any:
        """Ask as each five seconds whether the node can take pods. Raises RuntimeViolationError if not."""
        status = await self.runtime("Status", verbose=False)
        found = {one.type: one for one in status.status.conditions}
        for kind in ("RuntimeReady", "NetworkReady"):
            if kind not in found or not found[kind].status:
                raise RuntimeViolationError(f"{kind}: {found.get(kind)}")
        if "" not in [one.name for one in status.runtime_handlers]:
            raise RuntimeViolationError("the default runtime handler has no features")
        return status

    async def restart(self) -> None:
        """Begin anew: nothing that was known is remembered but the pods, which the API server gives anew."""
        await self.evented.stop()
        self.cache = Cache()
        self.pleg = GenericPleg(self.manager, self.cache)
        self.evented = EventedPleg(self.runtime, self.cache)
        self.manager.unhealthy.clear()
        await self.runtime.reconnect()
        await self.start()
        self._due = dict.fromkeys(self.pods, 0.0)

    # -- its loop

    async def step(self) -> list[Event]:
        """Relist, and do a round of work for every pod that has changed or is due. A runtime that is away is tried again."""
        try:
            events = await self.pleg.relist()
            touched = {event.pod for event in events} | self._now_due()
            await asyncio.gather(*(self._sync(uid) for uid in touched if uid in self.pods))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self.unreachable += 1
            return []
        return events

    async def until(self, condition: Callable[[], bool], patience: float = 30.0) -> None:
        """Turn after turn until something holds. Raises TimeoutError with what is known of the pods."""
        deadline = time.monotonic() + patience
        while True:
            await self.step()
            if condition():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {patience} s: {self.cache.statuses}")
            await asyncio.sleep(RELIST_SECONDS)

    def _now_due(self) -> set[str]:
        now = time.monotonic()
        found = {uid for uid, when in self._due.items() if when <= now}
        for uid in found:
            del self._due[uid]
        return found

    async def _sync(self, uid: str) -> None:
        self._due[uid] = 0.0  # again, should this fail
        pod = self.pods[uid]
        done = await self.manager.sync(pod, self.status(pod))
        del self._due[uid]
        if done.waits:
            self._due[uid] = time.monotonic() + min(done.waits.values())

    # -- pods

    def status(self, pod: Pod) -> PodStatus:
        """What is known of a pod."""
        return self.cache.statuses.get(pod.uid) or PodStatus(pod.uid, pod.name, pod.namespace)

    def is_running(self, pod: Pod) -> bool:
        """Whether all containers of a pod run, its sidecars too."""
        status = self.status(pod)
        wanted = [each for each in pod.all_containers if each.sidecar or each in pod.containers]
        known = [status.container(each.name) for each in wanted]
        return all(one is not None and one.state == State.CONTAINER_RUNNING for one in known)

    def add(self, *pods: Pod) -> None:
        """Be assigned pods."""
        for pod in pods:
            self.pods[pod.uid] = pod
            self._due[pod.uid] = 0.0

    async def run(self, *pods: Pod, patience: float = 30.0) -> None:
        """Be assigned pods, and wait until they run."""
        self.add(*pods)
        await self.until(lambda: all(map(self.is_running, pods)), patience)

    async def delete(self, *pods: Pod, grace: int | None = None) -> list[PodStatus]:
        """Pods are deleted: end them, remove what was theirs; how they ended."""
        for pod in pods:
            del self.pods[pod.uid]
            self._due.pop(pod.uid, None)
        last = await asyncio.gather(*(self.manager.terminate(pod, grace) for pod in pods))
        for status in last:
            for each in status.containers:
                await self.manager.remove_container(each.id)
        await self.collection.collect()
        await self.pleg.relist()
        for pod in pods:
            self.cgroups.remove(pod)
            shutil.rmtree(self.places.pod(pod))
        return last

    async def liveness(self) -> None:
        """Probe all containers that want it, once; those that have failed too often end in the next turn."""
        for pod in self.pods.values():
            for one in self.status(pod).running():
                probe = pod.container(one.metadata.name).liveness
                if probe is not None and not await self.prober.is_alive(one.id, probe):
                    self.manager.unhealthy.add(one.id)
                    self._due[pod.uid] = 0.0

    async def close(self) -> None:
        """Delete all pods, and hang up."""
        await self.evented.stop()
        await self.delete(*self.pods.values(), grace=0)
        self.cgroups.close()
        await self.runtime.close()
