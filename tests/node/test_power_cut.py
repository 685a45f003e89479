"""A disk that goes from under a pull: the next daemon starts, and every image that it shows is whole.

`remount,abort` stops an ext4 at once, as a power cut does: what its journal has not is lost. CRI_TEST_CUTS says how often
(20 by hand).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from baustelle.build import build
from baustelle.layout import ImageLayout, export_registry_tree
from cri.api.runtime import v1
from cri.images.layers import chain_ids
from tests.disk import Disk, need_loop_mounts
from tests.node.conftest import Daemon

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]

CUTS = int(os.environ.get("CRI_TEST_CUTS", "3"))
IMAGES, LAYERS, FILES = 4, 6, 40
DISK_MIB = 320


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class Shop:
    """A registry of images of random files, known by their digests."""

    def __init__(self, base: Path) -> None:
        self.tree = base / "tree"
        self.tree.mkdir()
        self.address = ""
        self.files: dict[str, list[dict[str, str]]] = {}
        """By repository: of each layer the digests of its files."""
        chance = random.Random(4)
        layout = ImageLayout(base / "layout")
        for number in range(IMAGES):
            context = base / f"context{number}"
            lines = ["FROM scratch"]
            layers = []
            for layer in range(LAYERS):
                folder = context / f"l{layer}/d{layer}"
                folder.mkdir(parents=True)
                for file in range(FILES):
                    size = chance.choice((0, 10, 500, 5_000, 40_000, 200_000))
                    (folder / f"f{file}").write_bytes(chance.randbytes(size))
                layers.append(digests(context / f"l{layer}"))
                lines.append(f"COPY l{layer}/ /")
            (context / "Containerfile").write_text("\n".join([*lines, 'CMD ["x"]']) + "\n")
            image = build(context / "Containerfile", context, layout=layout)
            export_registry_tree(layout, image, f"app{number}", "latest", self.tree)
            self.files[f"app{number}"] = layers


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    files = Shop(tmp_path_factory.mktemp("shop"))
    handler = functools.partial(Files, directory=files.tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        files.address = f"localhost:{server.server_port}"
        yield files
        server.shutdown()
        thread.join()


@pytest.fixture
def node(shop: Shop) -> Iterator[tuple[Daemon, Disk]]:
    need_loop_mounts()
    daemon = Daemon(shop.address, f"crip{os.getpid()}")
    disk = Disk(daemon.base / "disk", daemon.base / "state", DISK_MIB)
    try:
        yield daemon, disk
    finally:
        if daemon.process.poll() is None:
            assert not daemon.events("call failed unexpectedly"), "a disk that goes is no surprise"
        daemon.end(signal.SIGKILL)
        disk.unmount()
        print(daemon.log.read_text())
        shutil.rmtree(daemon.base)


def pull(daemon: Daemon, repository: str) -> str:
    image = v1.ImageSpec(image=f"{daemon.registry}/{repository}:latest")
    return daemon.client("PullImage", v1.PullImageRequest(image=image)).image_ref


def is_whole(daemon: Daemon, shop: Shop, repository: str) -> bool:
    """Whether an image is here; then every file of it must be what it was in the registry."""
    request = v1.ImageStatusRequest(
        image=v1.ImageSpec(image=f"{daemon.registry}/{repository}:latest"), verbose=True
    )
    status = daemon.client("ImageStatus", request)
    if status.image is None or not status.image.id:
        return False
    diff_ids = json.loads(status.info["info"])["imageSpec"]["rootfs"]["diff_ids"]
    for chain_id, expected in zip(chain_ids(diff_ids), shop.files[repository], strict=True):
        (layers,) = (daemon.base / "state/snapshots").iterdir()
        assert digests(layers / chain_id.replace(":", "-") / "fs") == expected, f"{repository} is torn"
    return True


def test_a_disk_that_goes_under_pulls(node, shop):
    daemon, disk = node
    daemon.start()
    chance = random.Random()
    whole = answered = 0
    for cut in range(CUTS):
        names = list(shop.files)
        chance.shuffle(names)
        done: set[str] = set()

        def one(name: str, done: set[str] = done) -> None:
            with contextlib.suppress(grpc.RpcError):
                pull(daemon, name)
                done.add(name)

        with ThreadPoolExecutor(2) as pool:
            pulls = [pool.submit(one, name) for name in names]
            time.sleep(chance.uniform(0, 0.7))
            before = set(done)
            disk.cut()
            for under_way in pulls:
                under_way.result()
        assert not daemon.events("call failed unexpectedly"), "a disk that goes is no surprise"
        daemon.end(signal.SIGKILL)
        disk.unmount()
        disk.check()
        disk.mount()
        daemon.start()
        here = {name for name in shop.files if is_whole(daemon, shop, name)}
        assert before <= here, f"cut {cut}: an image is lost whose pull was answered"
        whole += len(here)
        answered += len(before)
        for name in names:
            pull(daemon, name)
            assert is_whole(daemon, shop, name)
        left = {path.name for path in (daemon.base / "state/snapshots/overlay").iterdir()}
        assert len([name for name in left if not name.startswith("new-gone-")]) == IMAGES * LAYERS
        for name in names:  # what is behind its removal is under way when the next round begins
            image = v1.ImageSpec(image=f"{daemon.registry}/{name}:latest")
            daemon.client("RemoveImage", v1.RemoveImageRequest(image=image))
    print(f"{CUTS} cuts: {answered} images were answered, {whole} were there afterwards")
    daemon.end()
