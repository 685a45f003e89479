"""What the kubelet takes away: ended containers, sandboxes, logs and images.

Source: kubernetes v1.36.0, pkg/kubelet/kuberuntime/kuberuntime_gc.go, pkg/kubelet/images/image_gc_manager.go.
"""

from __future__ import annotations

import collections
import shutil
import time
from collections.abc import Callable
from typing import Any

from cri.api.runtime import v1
from tests.kubelet import statuses
from tests.kubelet.configs import POD_UID
from tests.kubelet.manager import RuntimeManager, RuntimeViolationError
from tests.kubelet.statuses import SandboxState, State


class ContainerCollection:
    """Runs once a minute, and when the disk fills up."""

    def __init__(self, manager: RuntimeManager, is_removed: Callable[[str], bool]) -> None:
        """`is_removed` says of a uid whether its pod has been deleted and has ended."""
        self._manager = manager
        self._runtime = manager.runtime
        self._is_removed = is_removed

    async def collect(self, min_age: float = 0.0, per_container: int = 1) -> None:
        """Remove what is not needed.

        Of a pod that goes on `per_container` ended attempts of each container are kept, and what is younger than `min_age`
        seconds; of one that is gone nothing.
        """
        await self._containers(min_age, per_container)
        await self._sandboxes()
        self._logs()

    async def _containers(self, min_age: float, per_container: int) -> None:
        listed = await self._runtime("ListContainers", filter=v1.ContainerFilter())
        units: dict[tuple[str, str], list[Any]] = collections.defaultdict(list)
        latest = time.time_ns() - int(min_age * 1e9)
        for each in statuses.newest_first(listed.containers):
            if each.state != State.CONTAINER_RUNNING and each.created_at <= latest:
                units[each.labels[POD_UID], each.metadata.name].append(each)
        for (uid, _), ended in units.items():
            for each in ended[0 if self._is_removed(uid) else per_container :][::-1]:
                if each.state == State.CONTAINER_UNKNOWN:
                    await self._runtime("StopContainer", container_id=each.id, timeout=2)
                await self._manager.remove_container(each.id)

    async def _sandboxes(self) -> None:
        containers = await self._runtime("ListContainers", filter=v1.ContainerFilter())
        listed = await self._runtime("ListPodSandbox", filter=v1.PodSandboxFilter())
        used = {each.pod_sandbox_id for each in containers.containers}
        pods: dict[str, list[Any]] = collections.defaultdict(list)
        for each in statuses.newest_first(listed.items):
            pods[each.metadata.uid].append(each)
        for uid, sandboxes in pods.items():
            for each in sandboxes[0 if self._is_removed(uid) else 1 :][::-1]:
                if each.state != SandboxState.SANDBOX_READY and each.id not in used:
                    await self._runtime("StopPodSandbox", pod_sandbox_id=each.id)
                    await self._runtime("RemovePodSandbox", pod_sandbox_id=each.id)

    def _logs(self) -> None:
        for directory in self._manager.places.logs.glob("*_*_*"):
            if self._is_removed(directory.name.rpartition("_")[2]):
                shutil.rmtree(directory)


class ImageCollection:
    """Images that no container needs are removed when their disk fills up, the longest unused first."""

    def __init__(self, manager: RuntimeManager) -> None:
        self._manager = manager
        self._runtime = manager.runtime
        self._detected: dict[str, float] = {}
        self._used: dict[str, float] = {}
        """When an image was seen first, and used last; by id."""

    async def detect(self) -> dict[str, Any]:
        """Look at what there is and what is used, as each five minutes; images by id."""
        listed = (await self._runtime("ListImages")).images
        pods = await self._manager.pods()
        now = time.time()
        for used in {one.image_id for pod in pods.values() for one in pod.containers}:
            self._used[used] = now
        images = {one.id: one for one in listed}
        self._detected = {one: self._detected.get(one, now) for one in images}
        self._used = {one: when for one, when in self._used.items() if one in images}
        return images

    async def free(self, size: int) -> int:
        """Free bytes; how many there were. Pinned images and those in use stay."""
        began = time.time()
        images = await self.detect()
        await self.filesystem()
        freed = 0
        order = sorted(images, key=lambda one: (self._used.get(one, 0.0), self._detected[one]))
        for one in order:
            if freed >= size:
                break
            if images[one].pinned or self._used.get(one, 0.0) >= began:
                continue
            await self._runtime("RemoveImage", image=v1.ImageSpec(image=one))
            freed += images[one].size
        return freed

    async def filesystem(self) -> Any:
        """The image filesystem, whose mount point the kubelet asks for its room. Raises RuntimeViolationError if there is none."""
        found = (await self._runtime("ImageFsInfo")).image_filesystems
        if not found or not found[0].fs_id.mountpoint:
            raise RuntimeViolationError("imageFs information is unavailable")
        return found[0]
