"""An image store over a registry that is a tree of files."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from baustelle.build import build
from baustelle.layout import ImageLayout, export_registry_tree
from cri.images import ImageStore
from cri.pinned import Pinned
from cri.sandbox.fake.host import FakeSnapshotter
from cri.state import Store
from registratur import Client, ContentStore, Platform


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class FileRegistry:
    """Images made of a few words, served as files."""

    def __init__(self, base: Path, algorithm: str = "sha256") -> None:
        self.tree = base / "tree"
        self.tree.mkdir()
        self.address = ""
        self.requests: list[str] = []
        self._context = base / "context"
        self._context.mkdir()
        self._layout = ImageLayout(base / "layout", algorithm)

    def add(self, repository: str, tag: str, *layers: str, user: str = "") -> None:
        """Make an image of one file a layer, with these contents."""
        lines = ["FROM scratch"]
        for number, content in enumerate(layers):
            (self._context / f"file{number}").write_text(content)
            lines.append(f"COPY file{number} /file{number}")
        lines += ['CMD ["sleep"]', *([f"USER {user}"] if user else [])]
        (self._context / "Containerfile").write_text("\n".join(lines) + "\n")
        image = build(self._context / "Containerfile", self._context, layout=self._layout)
        export_registry_tree(self._layout, image, repository, tag, self.tree)


@pytest.fixture
def registry(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FileRegistry]:
    files = FileRegistry(tmp_path, getattr(request, "param", "sha256"))

    class Handler(_Quiet):
        def do_GET(self) -> None:
            files.requests.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=files.tree)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        files.address = f"localhost:{server.server_port}"
        yield files
        server.shutdown()
        thread.join()


class Shelf:
    """An image store and what it stands on."""

    def __init__(self, base: Path, store: Store, client: Client) -> None:
        self.store = store
        self.content = ContentStore(base / "content")
        self.snapshots = FakeSnapshotter(base / "snapshots")
        self.pinned = Pinned()
        self.images = self.reopened(client)
        self.directory = base / "snapshots"

    def reopened(self, client: Client) -> ImageStore:
        return ImageStore(
            self.store,
            self.content,
            self.snapshots,
            client,
            platforms=[Platform.current()],
            max_parallel=3,
            pinned=self.pinned,
        )

    def layers(self) -> int:
        return len(list(self.directory.iterdir())) if self.directory.exists() else 0


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    store = await Store.open(tmp_path / "state.db")
    async with Client() as client:
        shelf = Shelf(tmp_path, store, client)
        shelf.client = client
        await shelf.images.load()
        yield shelf
        await shelf.images.settle()
    await store.close()
