"""Against the reference implementation, Docker's registry, as Debian packages it."""

import asyncio
import gzip
import io
import shutil
import socket
import subprocess
import tarfile

import aiohttp
import pytest

from registratur import (
    Client,
    ContentStore,
    HostsConfig,
    NotFoundError,
    Platform,
    Reference,
    compute_digest,
    pull,
)

REGISTRY = shutil.which("docker-registry")
pytestmark = pytest.mark.skipif(
    REGISTRY is None, reason="needs docker-registry (Debian package of this name)"
)

CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}"}}
"""


@pytest.fixture
async def address(tmp_path):
    """The host:port of a running, empty registry."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(root=tmp_path / "registry", address=address))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([REGISTRY, "serve", str(config)], stdout=log, stderr=log)
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(15):
            while True:
                try:
                    async with session.get(f"http://{address}/v2/"):
                        break
                except aiohttp.ClientConnectionError:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    await asyncio.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(10)


async def push(address, repository, image, tag):
    """Upload an image the way the distribution-spec describes it."""
    base = f"http://{address}/v2/{repository}"
    async with aiohttp.ClientSession() as session:
        for blob in (image.config, *image.layers):
            async with session.post(f"{base}/blobs/uploads/") as started:
                location = started.headers["Location"]
            mark = "&" if "?" in location else "?"
            async with session.put(f"{location}{mark}digest={compute_digest(blob)}", data=blob) as done:
                assert done.status == 201, await done.text()
        headers = {"Content-Type": image.media_type}
        async with session.put(f"{base}/manifests/{tag}", data=image.manifest, headers=headers) as done:
            assert done.status == 201, await done.text()


def tar_layer(name, content):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
async def test_pull(address, tmp_path, client, kit, docker):
    image = kit.image(layers=[tar_layer("a", b"1" * 100_000), tar_layer("b", b"2")], docker=docker)
    await push(address, "team/app", image, "v1")
    ref, sink, store = (
        Reference.parse(f"{address}/team/app:v1"),
        kit.sink(),
        ContentStore(tmp_path / "content"),
    )
    pulled = await pull(client, ref, [Platform("linux", "amd64")], sink, store)
    assert pulled.repo_digest == image.digest
    assert sink.received == dict(enumerate(image.layers))
    assert pulled.manifest.media_type == image.media_type


async def test_as_a_mirror_of_another_registry(address, store, sink, kit):
    image = kit.image()
    await push(address, "pause", image, "3.10")
    hosts = HostsConfig(mirrors={"*": [f"http://{address}"]}, mirrors_only=True)
    async with Client(hosts, retry=kit.quick) as client:
        ref = Reference.parse("registry.k8s.io/pause:3.10")
        pulled = await pull(client, ref, [Platform("linux", "amd64")], sink, store)
        assert pulled.repo_digest == image.digest
        with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
            await client.manifest(Reference.parse("registry.k8s.io/pause:none"))


async def test_range_requests(address, client, kit):
    """The registry must answer the Range that a continued download asks for."""
    image = kit.image()
    await push(address, "team/app", image, "v1")
    layer = image.layers[0]
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(
            f"http://{address}/v2/team/app/blobs/{compute_digest(layer)}", headers={"Range": "bytes=5-"}
        ) as answer,
    ):
        assert answer.status == 206
        assert await answer.read() == layer[5:]
