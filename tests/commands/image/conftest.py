"""The command in this process, and services that say what each test wants, behind the daemon's own RPC layer."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from cri import cli
from cri.api.runtime import v1
from cri.metrics import Metrics
from cri.rpc import RpcServer
from cri.rpc.table import IMAGE_SERVICE, RUNTIME_SERVICE, TABLE, UNIMPLEMENTED, Rpc


@dataclass
class Ended:
    """What a command came to."""

    status: int
    out: str
    err: str


@dataclass
class Node:
    """A daemon that knows these images and containers."""

    socket: Path
    images: list[v1.Image] = field(default_factory=list)
    containers: list[v1.Container] = field(default_factory=list)
    statuses: dict[str, v1.ContainerStatus] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    answers: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    """By RPC: what is done instead."""

    def answer(self, rpc: Rpc, request: Any) -> Any:
        self.requests.append(request)
        if rpc.name in self.answers:
            return self.answers[rpc.name](request)
        match rpc.name:
            case "StreamImages":
                return [v1.StreamImagesResponse(images=[image]) for image in self.images]
            case "StreamContainers":
                return [v1.StreamContainersResponse(containers=[one]) for one in self.containers]
            case "ContainerStatus":
                return v1.ContainerStatusResponse(status=self.statuses.get(request.container_id))
            case "ImageStatus":
                return v1.ImageStatusResponse(image=self.find(request.image.image), info=self.info)
            case "RemoveImage":
                self.images.remove(self.find(request.image.image))
        return rpc.response()

    def find(self, name: str) -> v1.Image | None:
        return next((one for one in self.images if name in (one.id, *one.repo_tags, *one.repo_digests)), None)

    def asked(self, kind: type) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]


def serving(node: Node, name: str) -> object:
    """A service of the CRI whose methods answer as `node` does."""

    def method(rpc: Rpc) -> Any:
        async def unary(self: object, request: Any) -> Any:
            found = node.answer(rpc, request)
            return await found if hasattr(found, "__await__") else found

        async def stream(self: object, request: Any) -> AsyncIterator[Any]:
            for found in node.answer(rpc, request):
                yield found

        return stream if rpc.stream else unary

    methods = {rpc.method: method(rpc) for rpc in TABLE[name] if rpc.name not in UNIMPLEMENTED}
    return type(name.rpartition(".")[2], (), methods)()


@pytest.fixture
def directory() -> AsyncIterator[Path]:
    """A directory whose path is short enough for a socket."""
    found = Path(tempfile.mkdtemp(prefix="cri-image-"))
    yield found
    shutil.rmtree(found)


@pytest.fixture
async def node(directory: Path) -> AsyncIterator[Node]:
    made = Node(directory / "s")
    server = RpcServer(serving(made, RUNTIME_SERVICE), serving(made, IMAGE_SERVICE), Metrics())
    with capture_logs():
        await server.start(made.socket)
        yield made
        await server.stop(0)


@pytest.fixture
def command(directory: Path, capsys, monkeypatch) -> Callable[..., Any]:
    """Runs `cri-jails image ...`, in a thread, as somebody who has no credentials."""
    monkeypatch.setenv("DOCKER_CONFIG", str(directory / "docker"))

    async def run(*arguments: object) -> Ended:
        status = await asyncio.to_thread(cli.main, ["image", *map(str, arguments)])
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return run


@pytest.fixture
def image(node: Node, command) -> Callable[..., Any]:
    """Runs `cri-jails image ACTION --address ... ...`, beside the daemon that is `node`."""

    async def run(action: str, *arguments: object) -> Ended:
        return await command(action, "--address", f"unix://{node.socket}", *arguments)

    return run


@pytest.fixture
def kit() -> SimpleNamespace:
    """Makers of what a node has."""

    def image(mark: str, *names: str, **fields: Any) -> v1.Image:
        return v1.Image(
            id=f"sha256:{mark * 64}",
            repo_tags=[name for name in names if "@" not in name],
            repo_digests=[name for name in names if "@" in name],
            **({"size": 4_860_000} | fields),
        )

    return SimpleNamespace(image=image, id=lambda mark: f"sha256:{mark * 64}")
