"""A registry made of aiohttp on loopback, whose every misbehaviour a test can switch on."""

import gzip
import hashlib
import json
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from registratur import Client, ContentStore, HostsConfig, Reference, RetryPolicy, media
from registratur.digest import compute_digest

QUICK = RetryPolicy(tries=3, base=0.01, cap=0.05)

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def diff_id(layer: bytes) -> str:
    return compute_digest(gzip.decompress(layer))


def gzip_layer(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@dataclass
class Image:
    """The documents of one single-platform image."""

    manifest: bytes
    config: bytes
    layers: list[bytes]
    media_type: str
    platform: dict[str, str]

    @property
    def digest(self) -> str:
        return compute_digest(self.manifest)

    @property
    def entry(self) -> dict[str, object]:
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.manifest),
            "platform": self.platform,
        }


def make_image(
    os: str = "linux",
    architecture: str = "amd64",
    variant: str = "",
    layers: Sequence[bytes] = (),
    *,
    docker: bool = False,
) -> Image:
    packed = list(layers) or [gzip_layer(f"{os}/{architecture}/{variant} {n}".encode()) for n in range(2)]
    platform = {"os": os, "architecture": architecture} | ({"variant": variant} if variant else {})
    document = platform | {
        "rootfs": {"type": "layers", "diff_ids": [diff_id(layer) for layer in packed]},
        "config": {"cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
    }
    config = json.dumps(document).encode()
    media_type = media.DOCKER_MANIFEST if docker else media.OCI_MANIFEST
    layer_type = media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER_GZIP
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _entry(media.DOCKER_CONFIG if docker else media.OCI_CONFIG, config),
        "layers": [_entry(layer_type, layer) for layer in packed],
    }
    return Image(json.dumps(manifest).encode(), config, packed, media_type, platform)


def _entry(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": compute_digest(data), "size": len(data)}


def make_index(*entries: dict[str, object], docker: bool = False) -> bytes:
    media_type = media.DOCKER_INDEX if docker else media.OCI_INDEX
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()


@dataclass
class FakeRegistry:
    """Serves what it is given; `hook` may answer a request first, `headers` says whether it is talkative."""

    host: str = ""
    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    hook: Hook | None = None
    talkative: bool = True
    requests: list[web.Request] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def ref(self, rest: str = "team/app:1") -> Reference:
        return Reference.parse(f"{self.host}/{rest}")

    def add(self, image: Image, *tags: str) -> Image:
        for blob in (image.config, *image.layers):
            self.blobs[compute_digest(blob)] = blob
        for name in (image.digest, *tags):
            self.manifests[name] = image.manifest
        return image

    def add_index(self, index: bytes, *tags: str) -> str:
        digest = compute_digest(index)
        for name in (digest, *tags):
            self.manifests[name] = index
        return digest

    def seen(self, kind: str, method: str = "GET") -> list[web.Request]:
        return [
            request for request in self.requests if f"/{kind}/" in request.path and request.method == method
        ]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.counts[request.path] += 1
        if self.hook is not None and (answer := await self.hook(request)) is not None:
            return answer
        kind, name = request.match_info.get("kind"), request.match_info.get("name")
        data = (self.manifests if kind == "manifests" else self.blobs).get(name)
        if data is None:
            code = {"code": "MANIFEST_UNKNOWN", "message": f"no {kind} {name}"}
            return web.json_response({"errors": [code]}, status=404)
        headers = {}
        if self.talkative and kind == "manifests":
            document = json.loads(data)
            headers = {"Docker-Content-Digest": compute_digest(data), "Content-Type": document["mediaType"]}
        start = request.http_range.start or 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return web.Response(body=data[start:], headers=headers, status=206 if start else 200)


@pytest.fixture
async def registries() -> AsyncIterator[Callable[[], Awaitable[FakeRegistry]]]:
    """A maker of running registries, each on its own loopback port."""
    async with AsyncExitStack() as stack:

        async def make() -> FakeRegistry:
            registry = FakeRegistry()
            app = web.Application()
            app.router.add_route(
                "*", "/{prefix:.*}v2/{repository:.+}/{kind:manifests|blobs}/{name}", registry.handle
            )
            app.router.add_route("*", "/{anything:.*}", registry.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            listener = socket.create_server(("127.0.0.1", 0))
            await web.SockSite(runner, listener).start()
            registry.host = f"127.0.0.1:{listener.getsockname()[1]}"
            return registry

        yield make


@pytest.fixture
async def registry(registries: Callable[[], Awaitable[FakeRegistry]]) -> FakeRegistry:
    return await registries()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client(HostsConfig(), idle_timeout=0.4, connect_timeout=2, retry=QUICK) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "content")


@dataclass
class MemorySink:
    """Keeps layers in memory, and checks the order in which they began."""

    known: set[str] = field(default_factory=set)
    received: dict[int, bytes] = field(default_factory=dict)
    media_types: dict[int, str] = field(default_factory=dict)

    async def has(self, index: int, diff_ids: Sequence[str]) -> bool:
        return diff_ids[index] in self.known

    async def receive(
        self, index: int, diff_ids: Sequence[str], media_type: str, chunks: AsyncIterator[bytes]
    ) -> None:
        collected = hashlib.sha256()
        data = b"".join([chunk async for chunk in chunks])
        collected.update(gzip.decompress(data))
        assert f"sha256:{collected.hexdigest()}" == diff_ids[index]
        self.received[index] = data
        self.media_types[index] = media_type


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def kit() -> SimpleNamespace:
    """The makers of test content, for test modules (which cannot import a conftest)."""
    return SimpleNamespace(
        image=make_image, index=make_index, gzip=gzip_layer, entry=_entry, quick=QUICK, sink=MemorySink
    )
