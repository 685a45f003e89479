"""The metrics of all pods, encoded once per sample, for ListPodSandboxMetrics and its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from cri import lists
from cri.pod_metrics import encoding
from cri.pod_metrics.metric import Filesystem, Subject
from cri.sandbox.container import Container
from cri.sandbox.pod import PodSandbox
from cri.sandbox.pods import Pods
from cri.sandbox.spec import DiskUsage
from cri.sandbox.usage import Usage

KEPT_FOR = 60.0
"""Seconds that encodings are kept when nobody asks any more: twenty kilobytes for each container."""


class Samples(Protocol):
    """Who looks at what containers and pods use."""

    async def complete(self) -> None:
        """Return when everything that runs has been looked at once."""

    def container(self, container_id: str) -> tuple[Usage, DiskUsage | None] | None:
        """The newest sample of a container, and its writable layer; None without one."""

    def sandbox(self, sandbox_id: str) -> Usage | None:
        """The newest sample of a pod; None without one."""

    def filesystem(self) -> Filesystem | None:
        """What the writable layers are on."""


@dataclass(slots=True)
class _Kept:
    """Of a container or pod."""

    labels: bytes
    sampled: Subject | None = None
    """What the two encodings were made of."""
    sample: bytes = b""
    given: Subject | None = None
    live: bytes = b""


class PodMetrics:
    """Answers from memory; what is new since the last question is encoded a bit at a time."""

    def __init__(self, pods: Pods, samples: Samples) -> None:
        self._pods = pods
        self._samples = samples
        self._pace = lists.Pace()
        self._kept: dict[str, _Kept] = {}
        self._forgetting: asyncio.TimerHandle | None = None

    async def items(self) -> AsyncGenerator[list[bytes], None]:
        """The pods of which there is a sample, as elements of the list of either response.

        Raises ResourceExhaustedError if no message can have one of them.
        """
        await self._samples.complete()
        self._keep_on()
        # A pod may have hundreds of containers, so a step is one of them; after the last one its pod is put together.
        steps: list[tuple[PodSandbox, Container | None]] = []
        for sandbox in self._pods.sandboxes.values():
            steps += [(sandbox, container) for container in sandbox.containers.values()]
            steps.append((sandbox, None))
        parts: list[bytes] = []
        async for ((sandbox, container),) in self._pace.over(steps, some=1):
            if container is not None:
                if (metrics := self._of_container(sandbox, container)) is not None:
                    parts.append(encoding.container_item(container.id, *metrics))
                continue
            own = self._of_sandbox(sandbox)
            if own is not None or parts:
                item = encoding.pod_item(sandbox.id, *(own or ()), *parts)
                lists.checked(f"sandbox {sandbox.id}", len(item))
                yield [item]
            parts = []
        for gone in self._kept.keys() - self._pods.sandboxes.keys() - self._pods.containers.keys():
            del self._kept[gone]

    def _of_container(self, sandbox: PodSandbox, container: Container) -> tuple[bytes, bytes] | None:
        if (found := self._samples.container(container.id)) is None:
            return None
        usage, disk = found
        subject = Subject(
            usage, container.record.started_at, container.spec.resources, disk, self._samples.filesystem()
        )
        return self._encoded(container.id, subject, lambda: _container_labels(sandbox, container))

    def _of_sandbox(self, sandbox: PodSandbox) -> tuple[bytes, bytes] | None:
        if (usage := self._samples.sandbox(sandbox.id)) is None:
            return None
        return self._encoded(
            sandbox.id, Subject(usage, sandbox.record.created_at), lambda: _pod_labels(sandbox)
        )

    def _encoded(self, id_: str, subject: Subject, labels: Callable[[], bytes]) -> tuple[bytes, bytes]:
        """The metrics of a sample, and of what was given; each made anew when that has changed."""
        if (kept := self._kept.get(id_)) is None:
            kept = self._kept[id_] = _Kept(labels())
        if kept.sampled is None or kept.sampled.usage is not subject.usage:
            kept.sampled, kept.sample = subject, encoding.sample_metrics(subject, kept.labels)
        if (
            kept.given is None
            or kept.given.resources is not subject.resources
            or kept.given.started_at != subject.started_at
        ):
            kept.given, kept.live = subject, encoding.live_metrics(subject, kept.labels)
        return kept.sample, kept.live

    def _keep_on(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(KEPT_FOR, self._kept.clear)


def _pod_labels(sandbox: PodSandbox) -> bytes:
    """Of a pod as a whole: as cAdvisor labels its cgroup, so that queries of containers pass over it (`container!=""`)."""
    return encoding.labels(("", sandbox.id, "", "", sandbox.spec.namespace, sandbox.spec.name))


def _container_labels(sandbox: PodSandbox, container: Container) -> bytes:
    """In the order of BASE_LABELS. The image is called as the pod's author did: what the kubelet sends besides is its id."""
    config = container.config
    name = config.metadata.name if config.metadata is not None else ""
    image = "" if config.image is None else config.image.user_specified_image or config.image.image
    return encoding.labels(
        (name, container.id, image, container.id, sandbox.spec.namespace, sandbox.spec.name)
    )
