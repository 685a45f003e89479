"""What is shown of pods and containers, encoded once per change of them, whoever asks and however often.

A `Moment` is what a pod and its containers were at one time: records and specs are values, so it costs next to nothing to
keep one, and what is encoded of it later, perhaps in a thread, is of that time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from cri import encode, garbage, lists
from cri.images import ImageStore
from cri.sandbox.container import Container
from cri.sandbox.machine import ContainerState
from cri.sandbox.pod import PodSandbox
from cri.sandbox.spec import ContainerSpec
from cri.state import ContainerRecord, SandboxRecord

LONG = 64 * 1024
"""Bytes of what is known of an object, from which on it is encoded in a thread."""

FEW = 16
"""Containers whose statuses are put together in one go."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A pod at one time, with the containers that clients are shown."""

    sandbox: PodSandbox
    record: SandboxRecord
    containers: tuple[tuple[Container, ContainerRecord, ContainerSpec], ...]

    @classmethod
    def of(cls, sandbox: PodSandbox) -> Self:
        """The pod as it is."""
        shown = (one for one in sandbox.containers.values() if one.state is not ContainerState.CREATING)
        return cls(sandbox, sandbox.record, tuple((one, one.record, one.spec) for one in shown))

    @property
    def size(self) -> int:
        """About how many bytes of memory only this holds, once the pod and its containers are gone."""
        return _size(self.record) + sum(_size(record) for _, record, _ in self.containers)


class Statuses:
    """Encodes statuses, and keeps them with their objects."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._pace = lists.Pace()

    async def of_pod(self, moment: Moment) -> tuple[bytes, list[bytes]]:
        """A PodSandboxStatus, and a ContainerStatus of each container."""
        pod = await self._of_sandbox(moment.sandbox, moment.record)
        if len(moment.containers) <= FEW:
            return pod, [await self.of_container(*one) for one in moment.containers]
        found: list[bytes] = []
        async for some in self._pace.over(moment.containers, 1):
            found += [await self.of_container(*one) for one in some]
        return pod, found

    async def of_container(self, container: Container, record: ContainerRecord, spec: ContainerSpec) -> bytes:
        """A ContainerStatus, as of this record and spec."""
        image = self._image_of(record)
        known = container.status
        if known is not None and known[0] is record and known[1] == image:
            return known[2]
        made = await encoded(record, lambda: encode.container_status(container, record, spec, image))
        if container.record is record and is_short(record):
            container.status = record, image, made
        return made

    async def _of_sandbox(self, sandbox: PodSandbox, record: SandboxRecord) -> bytes:
        known = sandbox.status
        if known is not None and known[0] is record:
            return known[1]
        made = await encoded(record, lambda: encode.sandbox_status(sandbox, record))
        if sandbox.record is record and is_short(record):
            sandbox.status = record, made
        return made

    def _image_of(self, record: ContainerRecord) -> str:
        """How the container's image is called at the moment; "" if it has no name any more."""
        image = self._images.find(record.image_id)
        return image.tags[0] if image is not None and image.tags else ""


def fields(number: int, messages: Iterable[bytes]) -> list[bytes]:
    """Encoded messages as the values of a repeated field, in pieces."""
    return list(itertools.chain.from_iterable((encode.header(number, len(one)), one) for one in messages))


def is_short(record: SandboxRecord | ContainerRecord) -> bool:
    """Whether an object is encoded on the spot."""
    return _size(record) <= LONG


async def encoded(record: SandboxRecord | ContainerRecord, make: Callable[[], bytes]) -> bytes:
    """What is encoded of an object; in a thread if it has ten thousand annotations or mounts."""
    return make() if is_short(record) else await asyncio.to_thread(_encoded_long, make)


def _encoded_long(make: Callable[[], bytes]) -> bytes:
    with garbage.paused():
        return make()


def _size(record: SandboxRecord | ContainerRecord) -> int:
    return len(record.config) + len(record.spec)
