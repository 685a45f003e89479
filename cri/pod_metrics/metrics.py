"""The metrics of all pods, encoded once per sample, for ListPodSandboxMetrics and its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from cri import lists
from cri.pod_metrics import encoding
from cri.pod_metrics.metric import Filesystem, Subject
from cri.sandbox.container import Container
from cri.sandbox.pod import PodSandbox
from cri.stats import ContainerFigures, PodFigures, Stats

KEPT_FOR = 10.0
"""Seconds that encodings are kept after the last question, twelve kilobytes of each pod and container: then samples are new."""


@dataclass(slots=True)
class _Kept:
    """Of a container or pod: its labels, and its metrics with what they were made of."""

    labels: bytes
    sampled: Subject | None = None
    sample: bytes = b""
    given: Subject | None = None
    live: bytes = b""


class PodMetrics:
    """Answers from memory; what is new since the last question is encoded a bit at a time."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._pace = lists.Pace()
        self._kept: dict[str, _Kept] = {}
        self._forgetting: asyncio.TimerHandle | None = None

    async def items(self) -> AsyncGenerator[list[bytes], None]:
        """The READY pods, as elements of the list of either response.

        Raises ResourceExhaustedError if no message can have one of them.
        """
        pods = await self._stats.pods()
        self._keep_on()
        # A pod may have hundreds of containers, so a step is one of them; after the last one its pod is put together.
        steps: list[tuple[PodFigures, ContainerFigures | None]] = []
        for pod in pods:
            steps += [(pod, container) for container in pod.containers]
            steps.append((pod, None))
        containers: list[bytes] = []
        async for ((pod, container),) in self._pace.over(steps, some=1):
            if container is not None:
                metrics = self._of_container(pod.pod, container)
                containers.append(encoding.container_item(container.container.id, *metrics))
                continue
            item = encoding.pod_item(pod.pod.id, *self._of_pod(pod), *containers)
            lists.checked(f"sandbox {pod.pod.id}", len(item))
            yield [item]
            containers = []
        self._forget_but(pods)

    def _of_container(self, pod: PodSandbox, figures: ContainerFigures) -> tuple[bytes, bytes]:
        container, layer = figures.container, figures.layer
        subject = Subject(
            figures.sample.usage,
            container.record.started_at,
            container.spec.resources,
            None if layer is None else layer.usage,
            self._filesystem(),
        )
        return self._encoded(container.id, subject, lambda: _container_labels(pod, container))

    def _of_pod(self, figures: PodFigures) -> tuple[bytes, bytes]:
        pod = figures.pod
        subject = Subject(figures.sample.usage, pod.record.created_at)
        return self._encoded(pod.id, subject, lambda: _pod_labels(pod))

    def _filesystem(self) -> Filesystem | None:
        room = self._stats.room
        return None if room is None else Filesystem(room.device, room.bytes, room.inodes, room.free_inodes)

    def _encoded(self, id_: str, subject: Subject, labels: Callable[[], bytes]) -> tuple[bytes, bytes]:
        """The metrics of a sample, and of what was given; each made anew when that is another one."""
        if (kept := self._kept.get(id_)) is None:
            kept = self._kept[id_] = _Kept(labels())
        before = kept.sampled
        if before is None or before.usage is not subject.usage or before.disk is not subject.disk:
            kept.sampled, kept.sample = subject, encoding.sample_metrics(subject, kept.labels)
        before = kept.given
        if (
            before is None
            or before.resources is not subject.resources
            or before.started_at != subject.started_at
        ):
            kept.given, kept.live = subject, encoding.live_metrics(subject, kept.labels)
        return kept.sample, kept.live

    def _forget_but(self, pods: list[PodFigures]) -> None:
        there = {pod.pod.id for pod in pods}
        there.update(one.container.id for pod in pods for one in pod.containers)
        for gone in self._kept.keys() - there:
            del self._kept[gone]

    def _keep_on(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(KEPT_FOR, self._kept.clear)


def _pod_labels(pod: PodSandbox) -> bytes:
    """Of a pod as a whole: as cAdvisor labels its cgroup, so that queries of containers pass over it (`container!=""`)."""
    return encoding.labels(("", pod.id, "", "", pod.spec.namespace, pod.spec.name))


def _container_labels(pod: PodSandbox, container: Container) -> bytes:
    """In the order of BASE_LABELS. The image is called as the pod's author did: what the kubelet sends besides is its id."""
    config = container.config
    name = config.metadata.name if config.metadata is not None else ""
    image = "" if config.image is None else config.image.user_specified_image or config.image.image
    return encoding.labels((name, container.id, image, container.id, pod.spec.namespace, pod.spec.name))
