"""Pulls by way of mirrors that are not what they should be, into layers that are unpacked."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading

import pytest

from registratur import Client, DigestMismatchError, HostsConfig, RetryPolicy


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(registry, tmp_path):
    """The address of a copy of the registry, and the copy's tree, which is empty until `shutil.copytree`."""
    tree = tmp_path / "mirror"
    tree.mkdir()
    handler = functools.partial(_Quiet, directory=tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", tree
        server.shutdown()
        thread.join()


def spoil(tree, part):
    """Change a byte of the largest blob, in its middle or at its end; the number of bytes stays."""
    blob = max(
        (path for path in tree.rglob("sha256:*") if "blobs" in path.parts), key=lambda p: p.stat().st_size
    )
    data = blob.read_bytes()
    at = len(data) * part // 2 - (part == 2)
    blob.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])


def mirrored(registry, url):
    hosts = HostsConfig(mirrors={registry.address: [url]})
    return Client(hosts, retry=RetryPolicy(tries=2, base=0.01, cap=0.05))


@pytest.mark.parametrize("part", [1, 2], ids=["in the middle", "at the end"])
async def test_wrong_bytes_of_a_mirror_are_thrown_away_and_the_registry_is_asked(
    shelf, registry, mirror, part
):
    url, tree = mirror
    registry.add("team/app", "1", "x" * 20000, "b", "c")
    shutil.copytree(registry.tree, tree, dirs_exist_ok=True)
    spoil(tree, part)
    async with mirrored(registry, url) as client:
        images = shelf.reopened(client)
        await images.load()
        image_id = await images.pull(f"{registry.address}/team/app:1", None)
        await images.settle()
    assert images.find(image_id) is not None
    assert shelf.layers() == 3
    assert any("/blobs/" in path for path in registry.requests)


async def test_wrong_bytes_of_all_leave_nothing(shelf, registry, mirror):
    url, tree = mirror
    registry.add("team/app", "1", "x" * 20000, "b", "c")
    spoil(registry.tree, 2)
    shutil.copytree(registry.tree, tree, dirs_exist_ok=True)
    async with mirrored(registry, url) as client:
        images = shelf.reopened(client)
        await images.load()
        with pytest.raises(DigestMismatchError):
            await images.pull(f"{registry.address}/team/app:1", None)
        await images.settle()
    assert shelf.layers() == 0
    assert list(shelf.content.digests()) == []
