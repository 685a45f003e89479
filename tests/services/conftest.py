"""Both services on the kernel in memory, and what is behind them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from baustelle.bundle import ImageDefaults
from cri.events import Events
from cri.image_service import ImageService
from cri.metrics import Metrics
from cri.runtime_service import RuntimeService
from cri.sandbox.fake import FakeHost, FakeKernel, FakeNetwork
from cri.sandbox.host import Condition
from cri.sandbox.node import Node, RunnableImage
from cri.sandbox.pods import Pods
from cri.sandbox.spec import DiskUsage
from cri.sandbox.trash import Trash
from cri.state import ImageRecord, Store
from cri.stats import Stats
from cri.statuses import Statuses
from cri.streaming import StreamingRequests
from cri.streaming.server import StreamingServer

IMAGE_ID = "sha256:" + "a" * 64
TAG = "docker.io/library/app:1"


class Images:
    """An image store with one image."""

    record = ImageRecord(
        id=IMAGE_ID, tags=[TAG], digests=["docker.io/library/app@sha256:b"], size=7, chains=["sha256:c"],
        config="{}", user="1000:5", manifest="sha256:d", pinned=False, pulled_at=1,
    )  # fmt: skip

    def runnable(self, reference: str) -> RunnableImage:
        return RunnableImage(IMAGE_ID, self.record.digests[0], ("sha256:c",), ImageDefaults(cmd=("sleep",)))

    def hold(self, layers):
        return contextlib.nullcontext()

    async def collect(self) -> None:
        pass

    def images(self):
        return [self.record]

    def find(self, reference: str):
        return self.record if reference in (TAG, IMAGE_ID) else None

    async def pull(self, reference: str, credentials) -> str:
        return IMAGE_ID

    async def remove(self, reference: str) -> None:
        pass

    def usage(self) -> DiskUsage:
        return DiskUsage(1000, 10)


class Network(FakeNetwork):
    async def condition(self) -> Condition:
        return Condition(ok=True)

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        pass


@pytest.fixture(scope="module")
def node():
    """What is behind the services."""
    return SimpleNamespace(directory=Path(tempfile.mkdtemp()))


@pytest.fixture(scope="module")
def grpc_servicer(grpc_run, node):
    kernel = node.kernel = FakeKernel()
    host, node.network, images = FakeHost(kernel, node.directory / "host"), Network(kernel), Images()

    async def make():
        node.events = Events()
        node.store = await Store.open(node.directory / "state.db")
        node.pods = Pods(
            Node(
                host=host,
                store=node.store,
                network=node.network,
                images=images,
                state_dir=node.directory,
                runtime_dir=node.directory / "run",
                trash=Trash(node.directory / "removed"),
                runtime_handlers=("linux",),
                witness=node.events,
            )
        )
        node.events.watch(node.pods.sandboxes)
        await host.open(node.pods.lost)
        stats = Stats(host, node.pods, images, node.directory)
        server = StreamingServer()
        await server.start()
        runtime = RuntimeService(
            host=host,
            pods=node.pods,
            events=node.events,
            statuses=Statuses(images),
            network=node.network,
            stats=stats,
            streaming=StreamingRequests(node.pods, server, Metrics(), 60),
            runtime_handlers=("linux",),
            config={},
            pulls=list,
        )
        return (runtime, ImageService(images, stats, ["linux"])), server

    services, server = grpc_run(make())
    yield services
    node.events.end()
    grpc_run(server.stop())
    grpc_run(node.pods.disconnect())
    grpc_run(node.store.close())
