"""Images that take a password: who brings none gets none, whatever is on the node already."""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import threading

import pytest
from structlog.testing import capture_logs

from registratur import Credentials, UnauthorizedError

RIGHT = Credentials("robot", "Eiszapfen")
OTHER = Credentials("crane", "Eiszapfen")
WRONG = Credentials("robot", "Tauwetter")
USERS = {base64.b64encode(f"{one.username}:{one.password}".encode()).decode() for one in (RIGHT, OTHER)}


@pytest.fixture
def guarded(registry):
    """The address of the same files behind a password."""

    class Guard(http.server.SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if self._is_known():
                super().do_HEAD()

        def do_GET(self) -> None:
            if self._is_known():
                registry.requests.append(self.path)
                super().do_GET()

        def _is_known(self) -> bool:
            if self.headers.get("Authorization", "").removeprefix("Basic ") in USERS:
                return True
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False

        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Guard, directory=registry.tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def held(shelf, monkeypatch):
    """Set to let layers be unpacked; `begun` says that one is about to be."""
    go, begun = asyncio.Event(), asyncio.Event()
    begin = shelf.snapshots.begin

    async def begin_later(*of):
        begun.set()
        await go.wait()
        return await begin(*of)

    monkeypatch.setattr(shelf.snapshots, "begin", begin_later)
    go.begun = begun
    return go


@pytest.mark.parametrize("credentials", [None, WRONG], ids=["none", "wrong"])
async def test_what_is_here_is_for_those_who_may_pull_it(shelf, registry, guarded, credentials):
    registry.add("app", "1", "hello")
    image_id = await shelf.images.pull(f"{guarded}/app:1", RIGHT)
    (by_digest,) = shelf.images.find(image_id).digests
    for name in (f"{guarded}/app:1", by_digest):
        with pytest.raises(UnauthorizedError):
            await shelf.images.pull(name, credentials)
    assert shelf.images.find(image_id).tags == [f"{guarded}/app:1"]  # the image stays, for those who may
    registry.requests.clear()
    for name in (f"{guarded}/app:1", by_digest):
        assert await shelf.images.pull(name, OTHER) == image_id
    assert not [path for path in registry.requests if "/blobs/" in path]


@pytest.mark.parametrize("credentials", [None, WRONG], ids=["none", "wrong"])
async def test_a_pull_under_way_lets_nobody_in(shelf, registry, guarded, held, credentials):
    registry.add("app", "1", "hello")
    with capture_logs() as logs:
        pull = asyncio.create_task(shelf.images.pull(f"{guarded}/app:1", RIGHT))
        await held.begun.wait()
        async with asyncio.timeout(5):
            with pytest.raises(UnauthorizedError):
                await shelf.images.pull(f"{guarded}/app:1", credentials)
        held.set()
        assert shelf.images.find(await pull).tags == [f"{guarded}/app:1"]
    assert not [line for line in logs if any(one.password in str(line) for one in (RIGHT, WRONG))]


async def test_pulls_with_different_credentials_share_the_layers(shelf, registry, guarded, held):
    registry.add("app", "1", "hello", "world")
    pulls = [asyncio.create_task(shelf.images.pull(f"{guarded}/app:1", one)) for one in (RIGHT, OTHER)]
    await held.begun.wait()
    held.set()
    ids = await asyncio.gather(*pulls)
    assert len(set(ids)) == 1
    (manifest,) = {path for path in registry.requests if "/manifests/" in path}
    config = f"/blobs/{ids[0]}"
    layers = [path for path in registry.requests if "/blobs/" in path and not path.endswith(config)]
    assert manifest
    assert len(layers) == 2


async def test_who_has_asked_first_may_go(shelf, registry, held):
    registry.add("app", "1", "hello")
    name = f"{registry.address}/app:1"
    first, second = (asyncio.create_task(shelf.images.pull(name, None)) for _ in range(2))
    await held.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    held.set()
    image_id = await second
    assert shelf.images.find(name).id == image_id
    assert sum("/blobs/" in path for path in registry.requests) == 2


async def test_what_all_have_left_goes_on_for_the_next_one(shelf, registry, held):
    registry.add("app", "1", "hello")
    name = f"{registry.address}/app:1"
    only = asyncio.create_task(shelf.images.pull(name, None))
    await held.begun.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    again = asyncio.create_task(shelf.images.pull(name, None))
    await asyncio.sleep(0)
    held.set()
    assert shelf.images.find(name) is None
    assert shelf.images.find(await again).tags == [name]
    assert sum("/blobs/" in path for path in registry.requests) == 2
