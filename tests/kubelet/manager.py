"""kuberuntime: from a pod to its RPCs, in a kubelet's order.

Source: kubernetes v1.36.0, pkg/kubelet/kuberuntime (kuberuntime_manager.go, kuberuntime_container.go, kuberuntime_sandbox.go,
kuberuntime_termination_order.go), pkg/kubelet/images/image_manager.go.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from cri.api.runtime import v1
from tests.kubelet import configs, container_logs, statuses
from tests.kubelet.actions import Actions, BackOff, decide
from tests.kubelet.client import REQUEST_SECONDS, Runtime, is_not_found
from tests.kubelet.configs import ImageUser, Places
from tests.kubelet.pod_cgroups import PodCgroups
from tests.kubelet.specs import Container, Pod
from tests.kubelet.statuses import PodStatus, RuntimePod, SandboxState, State

LEAST_GRACE = 2
"""Seconds that any container has to end."""


class RuntimeViolationError(AssertionError):
    """The runtime has answered what no kubelet can go on with."""


@dataclass(slots=True)
class Synced:
    """What one round has done."""

    actions: Actions
    sandbox: str = ""
    started: dict[str, str] = field(default_factory=dict)
    """Ids by container."""
    waits: dict[str, float] = field(default_factory=dict)
    """Seconds that are left of a back-off, by container."""


class RuntimeManager:
    """Everything that is done for single pods."""

    def __init__(
        self, runtime: Runtime, places: Places, cgroups: PodCgroups, back_off: BackOff | None = None
    ) -> None:
        self.runtime = runtime
        self.places = places
        self.cgroups = cgroups
        self.back_off = back_off or BackOff()
        self.unhealthy: set[str] = set()
        """Containers whose liveness probes have failed often enough."""
        self.made: set[str] = set()
        """All containers that there ever were."""

    # -- what there is

    async def pods(self, uid: str = "", *, running: bool = False) -> dict[str, RuntimePod]:
        """All pods, or that of a uid, or what of them is ready and runs: sandboxes first, as they are there first."""
        labels = {configs.POD_UID: uid} if uid else {}
        sandbox_state = v1.PodSandboxStateValue(state=SandboxState.SANDBOX_READY) if running else None
        state = v1.ContainerStateValue(state=State.CONTAINER_RUNNING) if running else None
        sandboxes = await self.runtime(
            "ListPodSandbox", filter=v1.PodSandboxFilter(label_selector=labels, state=sandbox_state)
        )
        containers = await self.runtime(
            "ListContainers", filter=v1.ContainerFilter(label_selector=labels, state=state)
        )
        return statuses.group(sandboxes.items, containers.containers)

    async def status(self, pod: RuntimePod) -> PodStatus:
        """Everything about a pod that the lists have shown; what was removed meanwhile is left out."""
        found = PodStatus(pod.uid, pod.name, pod.namespace, timestamp=time.time_ns())
        for each in pod.sandboxes:
            if (answer := await self._unless_gone("PodSandboxStatus", pod_sandbox_id=each.id)) is not None:
                found.sandboxes.append(answer.status)
        if found.sandboxes and found.sandboxes[0].state == SandboxState.SANDBOX_READY:
            found.ips = statuses.addresses(found.sandboxes[0])
        for each in pod.containers:
            if (answer := await self._unless_gone("ContainerStatus", container_id=each.id)) is not None:
                found.containers.append(answer.status)
        found.containers = statuses.newest_first(found.containers)
        return found

    async def status_of(self, pod: Pod) -> PodStatus:
        """A pod's status, asked for afresh."""
        known = (await self.pods(pod.uid)).get(pod.uid, RuntimePod(pod.uid, pod.name, pod.namespace))
        return await self.status(known)

    async def _unless_gone(self, rpc: str, **fields: Any) -> Any | None:
        try:
            return await self.runtime(rpc, **fields)
        except grpc.aio.AioRpcError as error:
            if is_not_found(error):
                return None
            raise

    # -- what there should be

    async def sync(self, pod: Pod, status: PodStatus) -> Synced:
        """One round of SyncPod. Raises AioRpcError for whatever the runtime refuses."""
        actions = decide(pod, status, self.unhealthy)
        done = Synced(actions, actions.sandbox)
        if actions.kill_pod:
            if status.sandboxes:
                await self.kill(pod, status)
            if not actions.create_sandbox:
                return done
            await self._purge_init_containers(pod, status)
        for container, spec in actions.kill.items():
            await self._kill_container(pod, spec, container, pod.grace_seconds)
            self.unhealthy.discard(container)
        ips = status.ips
        if actions.create_sandbox:
            configs.prepare(pod, self.places)
            done.sandbox, ips = await self._create_sandbox(pod, actions.attempt)
        config = self._sandbox_config(pod, actions.attempt)
        for spec in actions.start:
            if (wait := self.back_off.left(pod, spec, status)) > 0:
                done.waits[spec.name] = wait
                continue
            done.started[spec.name] = await self._start(pod, spec, done.sandbox, config, status, ips)
        return done

    def _sandbox_config(self, pod: Pod, attempt: int) -> v1.PodSandboxConfig:
        return configs.sandbox(pod, self.places, attempt, self.cgroups.of(pod))

    async def _create_sandbox(self, pod: Pod, attempt: int) -> tuple[str, tuple[str, ...]]:
        self.cgroups.make(pod)
        self.places.pod_logs(pod).mkdir(parents=True, exist_ok=True)
        answer = await self.runtime(
            "RunPodSandbox",
            seconds=2 * REQUEST_SECONDS,
            config=self._sandbox_config(pod, attempt),
            runtime_handler="",
        )
        status = await self.runtime("PodSandboxStatus", pod_sandbox_id=answer.pod_sandbox_id)
        return answer.pod_sandbox_id, statuses.addresses(status.status)

    async def ensure_image(self, image: str, config: v1.PodSandboxConfig) -> str:
        """Pull an image unless it is here (IfNotPresent); its id."""
        spec = v1.ImageSpec(image=image, annotations=dict(config.annotations))
        if found := (await self.runtime("ImageStatus", image=spec)).image.id:
            return str(found)
        pulled = await self.runtime("PullImage", seconds=None, image=spec, sandbox_config=config)
        if not (await self.runtime("ImageStatus", image=spec)).image.size:
            raise RuntimeViolationError(f"{image} was pulled and has no size")
        return str(pulled.image_ref)

    async def _image_user(self, image: str) -> ImageUser:
        found = (await self.runtime("ImageStatus", image=v1.ImageSpec(image=image))).image
        if found.HasField("uid"):
            return ImageUser(found.uid.value)
        return ImageUser(None, found.username) if found.username else ImageUser()

    async def _start(
        self,
        pod: Pod,
        spec: Container,
        sandbox: str,
        sandbox_config: v1.PodSandboxConfig,
        status: PodStatus,
        ips: Sequence[str],
    ) -> str:
        image = await self.ensure_image(spec.image, sandbox_config)
        known = status.container(spec.name)
        if known is not None:
            attempt = int(known.annotations["io.kubernetes.container.restartCount"]) + 1
        else:  # the runtime may have lost its state, and logs must not be written twice
            attempt = _attempts_by_logs(self.places.container_logs(pod, spec.name))
        user = await self._image_user(spec.image)
        answer = await self.runtime(
            "CreateContainer",
            pod_sandbox_id=sandbox,
            config=configs.container(pod, spec, self.places, attempt, image, user, ips),
            sandbox_config=sandbox_config,
        )
        container = str(answer.container_id)
        self.made.add(container)
        await self.runtime("StartContainer", container_id=container)
        if spec.post_start:
            failed = await self._hook_failed(container, spec.post_start)
            if failed:
                await self._kill_container(pod, spec, container, pod.grace_seconds)
        return container

    async def resize(self, before: Pod, after: Pod, status: PodStatus) -> None:
        """Resize a running pod in place: its memory, then its CPUs.

        The runtime hears of a pod that grows before its containers do, and of one that shrinks after them.
        """
        now = list(before.containers)
        for kind in ("memory", "cpu"):
            fields = (f"{kind}_request", f"{kind}_limit")
            resized = [
                dataclasses.replace(old, **{each: getattr(new, each) for each in fields})
                for old, new in zip(now, after.containers, strict=True)
            ]
            grows = sum(getattr(each, fields[1]) for each in resized) > sum(
                getattr(each, fields[1]) for each in now
            )
            pod = dataclasses.replace(after, containers=resized)
            if grows:
                await self._resize_pod(pod, status)
            for spec in resized:
                known = status.container(spec.name)
                await self.runtime(
                    "UpdateContainerResources",
                    container_id=known.id,
                    linux=configs.container_resources(pod, spec),
                )
            if not grows:
                await self._resize_pod(pod, status)
            now = resized

    async def _resize_pod(self, pod: Pod, status: PodStatus) -> None:
        await self.runtime(
            "UpdatePodSandboxResources",
            pod_sandbox_id=status.sandboxes[0].id,
            overhead=v1.LinuxContainerResources(),
            resources=configs.pod_resources(pod),
        )

    # -- what is to end

    async def kill(self, pod: Pod, status: PodStatus, grace: int | None = None) -> None:
        """End a pod's containers, each in its turn, and stop its sandboxes; they are removed by the collection.

        Raises RuntimeViolationError if something runs all the same.
        """
        seconds = pod.grace_seconds if grace is None else grace
        running = {one.metadata.name: one.id for one in status.running()}
        ended = {name: asyncio.Event() for name in running}
        waits = _termination_order(pod, running)

        async def end(name: str, container: str) -> None:
            await self._kill_container(
                pod, pod.container(name), container, seconds, [ended[each] for each in waits[name]]
            )
            ended[name].set()

        await asyncio.gather(*(end(name, container) for name, container in running.items()))
        for sandbox in status.sandboxes:
            await self._unless_gone("StopPodSandbox", pod_sandbox_id=sandbox.id)

    async def terminate(self, pod: Pod, grace: int | None = None) -> PodStatus:
        """End a deleted pod; its last status.

        Raises RuntimeViolationError if something of it runs afterwards.
        """
        await self.kill(pod, await self.status_of(pod), grace)
        after = await self.status_of(pod)
        if left := [one.id for one in after.running()]:
            raise RuntimeViolationError(f"pod {pod.name} was killed, and these still run: {left}")
        return after

    async def _kill_container(
        self, pod: Pod, spec: Container, container: str, grace: int, turn: Sequence[asyncio.Event] = ()
    ) -> None:
        began = time.monotonic()

        def left() -> float:
            return grace - (time.monotonic() - began)

        if spec.pre_stop and grace > 0:
            await _within(self._hook_failed(container, spec.pre_stop), left())
        for event in turn:
            await _within(event.wait(), left())
        seconds = max(grace - int(time.monotonic() - began), LEAST_GRACE)  # whole seconds count
        await self._unless_gone(
            "StopContainer", seconds=REQUEST_SECONDS + seconds, container_id=container, timeout=seconds
        )

    async def _hook_failed(self, container: str, command: Sequence[str]) -> bool:
        code, _ = await self.exec(container, command, 0)
        return code != 0

    async def exec(self, container: str, command: Sequence[str], timeout: int) -> tuple[int, bytes]:
        """Run a command in a container: its exit code, and what it printed. 0 seconds: no time limit."""
        answer = await self.runtime(
            "ExecSync", seconds=None, container_id=container, cmd=list(command), timeout=timeout
        )
        return answer.exit_code, answer.stdout + answer.stderr

    async def remove_container(self, container: str) -> None:
        """Remove an ended container with its logs, which are found by its status."""
        status = (await self.runtime("ContainerStatus", container_id=container)).status
        container_logs.remove(Path(status.log_path))
        await self.runtime("ContainerStatus", container_id=container)
        await self.runtime("RemoveContainer", container_id=container)

    async def _purge_init_containers(self, pod: Pod, status: PodStatus) -> None:
        """A new sandbox begins with the first of them again."""
        for spec in pod.init_containers:
            for known in status.attempts(spec.name):
                await self.remove_container(known.id)


async def _within(awaited: Any, seconds: float) -> None:
    """Wait, but not for longer than that."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await awaited
    except TimeoutError:
        pass


def _termination_order(pod: Pod, running: Sequence[str] | dict[str, str]) -> dict[str, list[str]]:
    """For whose end each running container waits: a sidecar for the pod's own containers, and for the next sidecar."""
    waits: dict[str, list[str]] = {name: [] for name in running}
    own = [spec.name for spec in pod.containers if spec.name in running]
    next_sidecar: list[str] = []
    for spec in reversed(pod.init_containers):
        if spec.sidecar and spec.name in running:
            waits[spec.name] = [*own, *next_sidecar]
            next_sidecar = [spec.name]
    return waits


def _attempts_by_logs(directory: Path) -> int:
    """The attempt that has no log yet."""
    names = [path.name for path in directory.glob("*.log*")] if directory.is_dir() else []
    numbers = [int(found[1]) for name in names if (found := re.match(r"(\d+)\.log", name))]
    return max(numbers, default=-1) + 1
