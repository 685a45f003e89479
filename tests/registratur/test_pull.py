import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp import web

from registratur import (
    DigestMismatchError,
    MalformedContentError,
    NoMatchingPlatformError,
    NotFoundError,
    Platform,
    UnsupportedContentError,
    compute_digest,
    load,
    media,
    pull,
)

LINUX = Platform("linux", "amd64")
FREEBSD = Platform("freebsd", "amd64")
BOTH = [FREEBSD, LINUX]


@pytest.fixture
def fetch(client, store, sink):
    """Pull into the store and sink of this test."""

    async def pull_here(ref, platforms=BOTH):
        return await pull(client, ref, platforms, sink, store)

    return pull_here


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_single_manifest(registry, fetch, sink, kit, docker):
    image = registry.add(kit.image(docker=docker), "1")
    pulled = await fetch(registry.ref())
    assert pulled.reference == registry.ref()
    assert pulled.repo_digest == pulled.manifest.digest == image.digest
    assert pulled.id == pulled.config.digest == compute_digest(image.config)
    assert pulled.size == sum(map(len, (image.manifest, image.config, *image.layers)))
    assert pulled.config_json.cmd == ("/bin/sh",)
    assert pulled.diff_ids == pulled.config_json.diff_ids
    assert sink.received == dict(enumerate(image.layers))
    assert set(sink.media_types.values()) == {media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER_GZIP}


async def test_layers_are_not_kept_in_the_store(registry, fetch, store, kit):
    image = registry.add(kit.image(), "1")
    pulled = await fetch(registry.ref())
    assert set(store.digests()) == pulled.content == {image.digest, compute_digest(image.config)}


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_multi_platform(registry, fetch, kit, docker):
    images = [registry.add(kit.image(os, docker=docker)) for os in ("linux", "freebsd")]
    index = kit.index(*(image.entry for image in images), docker=docker)
    digest = registry.add_index(index, "1")
    pulled = await fetch(registry.ref())
    assert pulled.repo_digest == digest
    assert pulled.manifest.digest == images[1].digest
    assert pulled.config_json.platform == FREEBSD
    assert pulled.content == {digest, images[1].digest, compute_digest(images[1].config)}
    other = await fetch(registry.ref(), [LINUX])
    assert other.manifest.digest == images[0].digest


async def test_an_index_may_tell_the_release(registry, fetch, kit):
    image = registry.add(kit.image("freebsd"))
    entry = image.entry
    entry["platform"]["os.version"] = "15.1"
    registry.add_index(kit.index(entry), "1")
    pulled = await fetch(registry.ref())
    assert pulled.platform == replace(FREEBSD, os_version="15.1")
    assert (await fetch(registry.ref(f"team/app@{image.digest}"))).platform == FREEBSD


async def test_by_digest(registry, fetch, kit):
    image = registry.add(kit.image())
    pulled = await fetch(registry.ref(f"team/app:old@{image.digest}"))
    assert pulled.repo_digest == image.digest


async def test_static_file_server(registry, fetch, sink, kit):
    registry.talkative = False

    async def untyped(request):
        name = request.path.rpartition("/")[2]
        data = registry.manifests.get(name) or registry.blobs.get(name)
        return web.Response(body=data, headers={"Content-Type": "application/octet-stream"}) if data else None

    registry.hook = untyped
    image = kit.image()
    bare = json.loads(image.manifest)
    del bare["mediaType"]
    image.manifest = json.dumps(bare).encode()
    registry.add(image, "1")
    del registry.manifests[image.digest]
    pulled = await fetch(registry.ref())
    assert pulled.manifest.media_type == media.OCI_MANIFEST
    assert len(sink.received) == 2


async def test_index_entries_without_platform_are_opened(registry, fetch, kit):
    images = [registry.add(kit.image(os)) for os in ("plan9", "linux")]
    entries = [{key: value for key, value in image.entry.items() if key != "platform"} for image in images]
    inner = kit.index(*entries)
    registry.add_index(inner)
    registry.add_index(kit.index(kit.entry(media.OCI_INDEX, inner)), "1")
    pulled = await fetch(registry.ref())
    assert pulled.manifest.digest == images[1].digest


async def test_an_index_that_holds_itself_many_times_ends(registry, fetch, kit):
    index = kit.index()
    for _ in range(6):
        registry.add_index(index, "1")
        index = kit.index(kit.entry(media.OCI_INDEX, index))
    with pytest.raises(MalformedContentError, match="nested"):
        await fetch(registry.ref())


@pytest.mark.parametrize("indexed", [False, True])
async def test_no_platform(registry, fetch, sink, kit, indexed):
    image = registry.add(kit.image("linux", "arm", "v6"), "1")
    if indexed:
        registry.add_index(kit.index(image.entry), "1")
    with pytest.raises(
        NoMatchingPlatformError, match=r"no image for freebsd/amd64, linux/amd64; it has linux/arm/v6"
    ):
        await fetch(registry.ref())
    assert sink.received == {}


async def test_an_artifact_is_refused(registry, fetch, kit):
    image = kit.image()
    manifest = json.loads(image.manifest)
    registry.blobs[compute_digest(b"{}")] = b"{}"
    manifest["config"] = kit.entry("application/vnd.cncf.helm.config.v1+json", b"{}")
    registry.add_index(json.dumps(manifest).encode(), "1")
    with pytest.raises(UnsupportedContentError, match="artifact"):
        await fetch(registry.ref())


@pytest.mark.parametrize(
    ("media_type", "words"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "foreign"),
        (f"{media.OCI_LAYER_GZIP}+encrypted", "encrypted"),
    ],
)
async def test_layers_that_no_registry_can_give_are_refused(registry, fetch, sink, kit, media_type, words):
    image = kit.image()
    manifest = json.loads(image.manifest)
    manifest["layers"][1] |= {"mediaType": media_type, "urls": [f"{registry.url}/elsewhere"]}
    image.manifest = json.dumps(manifest).encode()
    registry.add(image, "1")
    with pytest.raises(UnsupportedContentError, match=rf"/app:1: layer 2 of 2 \(sha256:.* is {words}"):
        await fetch(registry.ref())
    assert not sink.received
    assert len(registry.seen("blobs")) == 1  # the config


async def test_layers_and_diff_ids_must_pair(registry, fetch, kit):
    image = kit.image()
    manifest = json.loads(image.manifest)
    manifest["layers"].pop()
    registry.add(image)
    registry.add_index(json.dumps(manifest).encode(), "1")
    with pytest.raises(MalformedContentError, match="lists 1 layers, the config 2"):
        await fetch(registry.ref())


async def test_a_huge_config_is_refused_unread(registry, fetch, kit):
    image = kit.image()
    manifest = json.loads(image.manifest)
    manifest["config"]["size"] = 1 << 40
    registry.add(image)
    registry.add_index(json.dumps(manifest).encode(), "1")
    with pytest.raises(MalformedContentError, match="at most"):
        await fetch(registry.ref())
    assert registry.seen("blobs") == []


async def test_known_layers_are_not_fetched(registry, fetch, sink, kit):
    image = registry.add(kit.image(), "1")
    sink.known = {json.loads(image.config)["rootfs"]["diff_ids"][0]}
    await fetch(registry.ref())
    assert set(sink.received) == {1}
    assert registry.counts[f"/v2/team/app/blobs/{compute_digest(image.layers[0])}"] == 0


async def test_a_second_pull_costs_one_head(registry, fetch, sink, kit):
    image = registry.add(kit.image(), "1")
    first = await fetch(registry.ref())
    sink.known = set(json.loads(image.config)["rootfs"]["diff_ids"])
    registry.requests.clear()
    assert await fetch(registry.ref()) == first
    assert [request.method for request in registry.requests] == ["HEAD"]


async def test_a_damaged_store_heals(registry, fetch, store, kit):
    image = registry.add(kit.image(), "1")
    await fetch(registry.ref())
    store.path(image.digest).write_bytes(b"")
    await fetch(registry.ref())
    assert store.read(image.digest) == image.manifest


@pytest.mark.parametrize("parallel", [1, 3])
async def test_parallel_layers_are_bounded(registry, client, store, kit, parallel):
    class CountingSink(kit.sink):
        now = most = 0

        async def receive(self, index, diff_ids, media_type, chunks):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.05)
            await super().receive(index, diff_ids, media_type, chunks)
            self.now -= 1

    sink = CountingSink()
    registry.add(kit.image(layers=[kit.gzip(bytes([n])) for n in range(6)]), "1")
    await pull(client, registry.ref(), BOTH, sink, store, max_parallel=parallel)
    assert sink.most == parallel
    assert len(sink.received) == 6


async def test_a_failing_sink_cancels_the_rest_and_is_told(registry, client, store, kit):
    class BrokenSink(kit.sink):
        cancelled = 0

        async def receive(self, index, diff_ids, media_type, chunks):
            if index == 1:
                await asyncio.sleep(0.05)
                raise OSError(28, "disk full")
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    sink = BrokenSink()
    registry.add(kit.image(layers=[kit.gzip(bytes([n])) for n in range(3)]), "1")
    with pytest.raises(OSError, match="disk full"):
        await pull(client, registry.ref(), BOTH, sink, store)
    assert sink.cancelled == 2


async def test_a_sink_that_stops_early_does_not_hide_a_wrong_digest(registry, client, store, kit):
    class HastySink(kit.sink):
        async def receive(self, index, diff_ids, media_type, chunks):
            await anext(chunks)

    content = bytes(1 << 20)
    layer = content[:-1] + b"\1"
    image = kit.image(layers=[kit.gzip(b"x")])
    manifest = json.loads(image.manifest)
    manifest["layers"] = [kit.entry(media.OCI_LAYER, content)]
    registry.add(image)
    registry.add_index(json.dumps(manifest).encode(), "1")
    registry.blobs[compute_digest(content)] = layer
    with pytest.raises(DigestMismatchError):
        await pull(client, registry.ref(), BOTH, HastySink(), store)


async def test_load_finds_the_image_offline(registry, fetch, store, kit):
    images = [registry.add(kit.image(os)) for os in ("linux", "freebsd")]
    digest = registry.add_index(kit.index(*(image.entry for image in images)), "1")
    pulled = await fetch(registry.ref())
    assert load(store, digest, BOTH, registry.ref()) == pulled
    alone = load(store, images[1].digest, BOTH)
    assert (alone.config, alone.size, alone.reference) == (pulled.config, pulled.size, None)
    with pytest.raises(NotFoundError):
        load(store, digest, [LINUX])
    with pytest.raises(NoMatchingPlatformError):
        load(store, digest, [Platform("plan9", "386")])
