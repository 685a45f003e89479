"""Daemons that are killed under pulls and removals: what is shown is whole, and the next pull reuses what was complete.

CRI_TEST_KILLS says how often (50 by hand).
"""

from __future__ import annotations

import contextlib
import functools
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

from cri.api.runtime import v1
from tests.node.conftest import Daemon
from tests.node.test_power_cut import LAYERS, Shop, is_whole, pull

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]

KILLS = int(os.environ.get("CRI_TEST_KILLS", "4"))


class Counting(http.server.SimpleHTTPRequestHandler):
    """Says which layers were asked for."""

    asked: list[str] = []  # noqa: RUF012 - of all requests

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    files = Shop(tmp_path_factory.mktemp("shop"))
    handler = functools.partial(Counting, directory=files.tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        files.address = f"localhost:{server.server_port}"
        yield files
        server.shutdown()
        thread.join()


@pytest.fixture
def node(shop: Shop) -> Iterator[Daemon]:
    daemon = Daemon(shop.address, f"crik{os.getpid()}"[:15])
    try:
        yield daemon
    finally:
        daemon.end(signal.SIGKILL)
        print(daemon.log.read_text())
        shutil.rmtree(daemon.base)


def layers_of(shop: Shop, name: str) -> list[str]:
    manifest = json.loads((shop.tree / "v2" / name / "manifests/latest").read_bytes())
    return [layer["digest"] for layer in manifest["layers"]]


def remove(daemon: Daemon, name: str) -> None:
    image = v1.ImageSpec(image=f"{daemon.registry}/{name}:latest")
    daemon.client("RemoveImage", v1.RemoveImageRequest(image=image))


def committed(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.base / "state/snapshots").glob("*/sha256-*")}


def test_kills_under_pulls_and_removals(node: Daemon, shop: Shop) -> None:
    node.start()
    chance = random.Random()
    reused = 0
    for _ in range(KILLS):
        names = list(shop.files)
        chance.shuffle(names)
        kept, removed = names[0], names[1]
        for name in (kept, removed):
            pull(node, name)

        def one(name: str, removed: str = removed) -> None:
            with contextlib.suppress(grpc.RpcError):
                (remove if name == removed else pull)(node, name)

        with ThreadPoolExecutor(3) as pool:
            under_way = [pool.submit(one, name) for name in names[1:]]
            time.sleep(chance.uniform(0, 0.6))
            node.process.send_signal(signal.SIGKILL)
            for done in under_way:
                done.result()
        node.end(signal.SIGKILL)
        before = committed(node)
        node.start()
        here = {name for name in names if is_whole(node, shop, name)}
        assert kept in here
        there = committed(node)
        assert there <= before
        again = [name for name in names if name not in here]
        wanted = {digest for name in again for digest in layers_of(shop, name)}
        Counting.asked.clear()
        for name in again:
            pull(node, name)
        asked = {path.rpartition("/")[2] for path in Counting.asked} & wanted
        spared = len(there) - LAYERS * len(here)
        assert len(asked) == LAYERS * len(again) - spared, "what was complete was fetched again"
        reused += spared
        assert all(is_whole(node, shop, name) for name in names)
        for name in names:
            remove(node, name)
        deadline = time.monotonic() + 30
        while left := leftovers(node):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    assert not node.events("call failed unexpectedly")
    print(f"{KILLS} kills, {reused} layers were reused")


def leftovers(daemon: Daemon) -> list[Path]:
    """What is left of images when there is none."""
    state = daemon.base / "state"
    content = [path for path in (state / "content").rglob("*") if path.is_file()]
    return [*(state / "snapshots").glob("*/*"), *content]
