"""A node on the kernel in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from baustelle.bundle import ImageDefaults
from cri.api.runtime import v1
from cri.errors import NotFoundError
from cri.sandbox.fake import FakeHost, FakeKernel, FakeNetwork
from cri.sandbox.node import Node, RunnableImage
from cri.sandbox.pods import Pods
from cri.sandbox.recovery import recover
from cri.sandbox.trash import Trash
from cri.state import Store


class OneImage:
    """Images, with one in it, and another one that declares volumes."""

    defaults = ImageDefaults(cmd=("sleep",))
    os = ""

    def runnable(self, reference: str) -> RunnableImage:
        if reference not in ("image", "declared"):
            raise NotFoundError(f"image {reference!r}")
        volumes = ("/data", "logs") if reference == "declared" else ()
        defaults = replace(self.defaults, volumes=volumes)
        return RunnableImage("sha256:1", "image@sha256:2", ("sha256:3",), defaults, self.os)

    def hold(self, layers: Iterable[str]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def collect(self) -> None:
        pass


class FakeNode:
    """A machine that daemons come and go on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel = FakeKernel()
        self.host = FakeHost(self.kernel, directory)
        self.network = FakeNetwork(self.kernel)
        self.images = OneImage()
        self.store: Store
        self.pods: Pods

    async def start(self) -> Pods:
        """Start a daemon."""
        self.store = await Store.open(self.directory / "state.db")
        node = Node(
            host=self.host,
            store=self.store,
            network=self.network,
            images=self.images,
            state_dir=self.directory,
            runtime_dir=self.directory / "run",
            trash=Trash(self.directory / "removed"),
            runtime_handlers=("linux",),
        )
        self.pods = Pods(node)
        await self.host.open(self.pods.lost)
        await recover(node, self.pods)
        return self.pods

    async def crash(self) -> None:
        """Kill the daemon: nothing is said to anybody."""
        await self.pods.disconnect()
        await self.store.close()

    async def restart(self) -> Pods:
        """Kill the daemon and start another."""
        await self.crash()
        return await self.start()

    def left(self) -> list[str]:
        """Whatever there is of anybody: jails, processes, addresses, records, directories."""
        files = [
            str(path.relative_to(self.directory))
            for parent in ("sandboxes", "containers")
            if (self.directory / parent).exists()
            for path in (self.directory / parent).iterdir()
        ]
        return [
            *(f"jail {name}" for name in self.kernel.jails),
            *(f"process {pid}" for pid in self.kernel.processes),
            *(f"address of {sandbox}" for sandbox in self.network.attached),
            *(f"record {key}" for key in (*self.store.sandboxes, *self.store.containers)),
            *(f"known {key}" for key in (*self.pods.sandboxes, *self.pods.containers)),
            *files,
        ]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    fake = FakeNode(tmp_path)
    await fake.start()
    yield fake
    await fake.crash()


def pod_config(name: str = "pod", **fields: object) -> v1.PodSandboxConfig:
    return v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name=name, uid="u", namespace="ns"), hostname=name, **fields
    )


def container_config(*command: str, name: str = "c", **fields: object) -> v1.ContainerConfig:
    return v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name=name),
        image=v1.ImageSpec(image="image"),
        command=list(command),
        **fields,
    )


async def eventually(condition: object, patience: float = 5.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def make() -> object:
    """The makers of configs, for test modules that cannot import from here."""

    class Make:
        pod = staticmethod(pod_config)
        container = staticmethod(container_config)
        eventually = staticmethod(eventually)

    return Make
