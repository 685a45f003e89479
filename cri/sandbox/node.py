"""What the life cycles work with: the node's parts, put together once by `cri.server`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from baustelle.bundle import ImageDefaults
from cri.sandbox.host import Host, Warden
from cri.sandbox.spec import PodAddresses, SandboxSpec
from cri.sandbox.trash import Trash
from cri.state import ContainerRecord, SandboxRecord, Store


@dataclass(frozen=True, slots=True)
class RunnableImage:
    """What a container needs of its image."""

    id: str
    reference: str
    """By digest, as ContainerStatus.image_ref shows it; the id where there is none."""
    layers: tuple[str, ...]
    """Chain ids, lowest first."""
    defaults: ImageDefaults
    os: str = ""
    """The operating system that it was built for."""


class Images(Protocol):
    """Where containers find their images."""

    def runnable(self, reference: str) -> RunnableImage:
        """The image of this id, tag or digest. Raises NotFoundError."""

    def hold(self, layers: Iterable[str]) -> AbstractContextManager[None]:
        """Keep layers until the record of a container says that they are needed."""

    async def collect(self) -> None:
        """Give back layers that no image and no container needs any more."""


class PodNetwork(Protocol):
    """How pods come by an address."""

    async def attach(self, spec: SandboxSpec, warden: Warden) -> PodAddresses:
        """Give the pod its interface, addresses and host ports. Undoes itself on failure."""

    async def detach(self, sandbox_id: str) -> None:
        """Take interface and addresses back; succeeds on what is gone."""

    async def is_attached(self, sandbox_id: str) -> bool:
        """Whether the pod has its interface, and nobody has begun to take it back."""

    async def rebuild(self, spec: SandboxSpec, warden: Warden, addresses: Sequence[str]) -> bool:
        """Write down again what a pod has, if what was written down is lost; whether it has a network.

        `addresses` are those that its record has.
        """

    async def release(self, sandbox_id: str) -> None:
        """Take the interface back of a sandbox that no record names; succeeds if there is none."""


class Witness(Protocol):
    """Who is told what becomes of pods and containers, in the turn of the loop in which it does. Must not raise."""

    def changed(self, record: SandboxRecord | ContainerRecord, before: str) -> None:
        """A sandbox or container is in the state that `record` has, and was in `before`."""

    def gone(self, record: SandboxRecord | ContainerRecord) -> None:
        """There is no such container any more; or there will be no such sandbox from now on."""


class _Nobody:
    def changed(self, record: SandboxRecord | ContainerRecord, before: str) -> None:
        pass

    def gone(self, record: SandboxRecord | ContainerRecord) -> None:
        pass


NOBODY: Witness = _Nobody()


@dataclass(frozen=True, slots=True)
class Node:
    """The parts."""

    host: Host
    store: Store
    network: PodNetwork
    images: Images
    state_dir: Path
    runtime_dir: Path
    trash: Trash
    runtime_handlers: tuple[str, ...] = ()
    spare_descriptors: Callable[[], AbstractContextManager[object]] = nullcontext
    """Descriptors for what must work when there are no others: stopping, removing, undoing."""
    demand_descriptors: Callable[[str], None] = lambda _: None
    """Raises ResourceExhaustedError, which names what was wanted, while there are too few to make something new."""
    witness: Witness = NOBODY
    undo_failed: Callable[[str], object] = lambda _: None
    """Is told of a step that could not be taken back."""

    def sandbox_directory(self, sandbox_id: str) -> Path:
        """Where a sandbox keeps its files."""
        return self.state_dir / "sandboxes" / sandbox_id

    def container_directory(self, container_id: str) -> Path:
        """Where a container keeps its files, its exit record among them."""
        return self.state_dir / "containers" / container_id

    def warden_directory(self, sandbox_id: str) -> Path:
        """Where a sandbox's warden listens; short, for the sake of sockaddr_un, and gone after a reboot."""
        return self.runtime_dir / sandbox_id[:16]
