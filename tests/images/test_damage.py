"""What is left of images when records, notes, manifests or layers are lost or damaged: everything but what was theirs."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from cri.images import ImageStore
from cri.sandbox.snapshots import CopySnapshotter
from cri.state import ContainerRecord, Store
from registratur import Client, ContentStore, DigestMismatchError, Platform, TransportError
from registratur import NotFoundError as NotInRegistryError


class Node:
    """Images on real directories, to be started as often as wanted, with or without the database of before."""

    def __init__(self, base, client: Client, registry) -> None:
        self.base = base
        self.client = client
        self.registry = registry
        self.store: Store
        self.images: ImageStore
        self.snapshots: CopySnapshotter

    async def start(self, *, database: bool = True) -> ImageStore:
        if hasattr(self, "store"):
            await self.end()
        if not database:
            for path in self.base.glob("state.db*"):
                path.unlink()
        self.store = await Store.open(self.base / "state.db")
        self.snapshots = CopySnapshotter(self.base)
        self.images = ImageStore(
            self.store,
            ContentStore(self.base / "content"),
            self.snapshots,
            self.client,
            platforms=[Platform.current()],
            max_parallel=3,
        )
        self.snapshots.remove_unfinished()
        await self.images.load()
        return self.images

    async def end(self) -> None:
        await self.images.settle()
        self.snapshots.wait()
        await self.store.close()

    def name(self, image: str) -> str:
        return f"{self.registry.address}/{image}"

    async def pull(self, image: str) -> str:
        return await self.images.pull(self.name(image), None)

    def shown(self) -> list[tuple[str, list[str], list[str], list[str]]]:
        return sorted((one.id, one.tags, one.digests, one.chains) for one in self.images.images())

    def layers(self) -> list[str]:
        self.snapshots.wait()
        return sorted(path.name for path in (self.base / "snapshots/copy").iterdir())

    def files(self) -> list:
        return [path for path in self.base.glob("content/**/*") if path.is_file()]

    def note(self, image_id: str):
        return self.base / "content/images" / f"{image_id.replace(':', '-')}.json"


@pytest.fixture
async def node(tmp_path, registry):
    (tmp_path / "node").mkdir()
    async with Client() as client:
        node = Node(tmp_path / "node", client, registry)
        await node.start()
        yield node
        await node.end()


async def two(node) -> list[str]:
    node.registry.add("a", "1", "base", "a", user="1000")
    node.registry.add("b", "1", "base", "b")
    return [await node.pull(f"{name}:1") for name in "ab"]


async def test_images_without_their_database(node):
    await two(node)
    before, layers = node.shown(), node.layers()
    assert len(before) == 2
    records = [image.values() for image in node.images.images()]
    await node.start(database=False)
    assert node.shown() == before
    assert [image.values() for image in node.images.images()] == records
    assert node.layers() == layers
    assert node.images.runnable(node.name("a:1")).defaults.user == "1000"
    await node.images.remove(node.name("a:1"))
    await node.start(database=False)
    assert [tags for _, tags, _, _ in node.shown()] == [[node.name("b:1")]], (
        "what was removed does not come back"
    )


async def test_a_tag_that_moved_belongs_to_the_newer_image_alone(node):
    node.registry.add("app", "latest", "old")
    old = await node.pull("app:latest")
    node.registry.add("app", "latest", "new")
    new = await node.pull("app:latest")
    # A crash between the two notes: the older image's still claims the tag.
    note = json.loads(node.note(old).read_text())
    node.note(old).write_text(json.dumps(note | {"tags": [node.name("app:latest")]}))
    await node.start(database=False)
    assert {image.id: image.tags for image in node.images.images()} == {
        old: [],
        new: [node.name("app:latest")],
    }


async def test_a_record_that_is_older_than_its_note(node):
    """A power cut takes the last commits of the database, never a note."""
    node.registry.add("app", "1", "hello")
    image_id = await node.pull("app:1")
    (record,) = node.images.images()
    node.registry.add("app", "2", "hello")
    await node.pull("app:2")
    await node.store.save(record)
    await node.start()
    assert node.images.find(image_id).tags == [node.name("app:1"), node.name("app:2")]


async def test_images_of_a_release_without_notes(node):
    ids = await two(node)
    shutil.rmtree(node.base / "content/images")
    before = node.shown()
    await node.start()
    assert node.shown() == before
    assert all(node.note(image_id).is_file() for image_id in ids)


def emptied(path):
    path.write_bytes(b"")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def randomised(path):
    path.write_bytes(os.urandom(200))


def as_directory(path):
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def as_fifo(path):
    path.unlink()
    os.mkfifo(path)


def as_link(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


DAMAGE = [os.unlink, emptied, halved, randomised, as_directory, as_fifo, as_link]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("database", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
async def test_every_file_of_the_content_in_turn(node, damage, database):
    ids = await two(node)
    files = [path.relative_to(node.base) for path in node.files()]
    assert len(files) == 2 * 3, "a manifest, a config and a note each"
    for path in files:
        damage(node.base / path)
        await node.start(database=database)
        here = {image.id for image in node.images.images()}
        lost = set(ids) - here
        assert len(lost) <= (not database), "with its record, no image needs any of them"
        for image_id in here:
            node.images.runnable(image_id)
        assert await two(node) == ids
        node.base.joinpath(path).read_bytes()
    for image_id in ids:
        await node.images.remove(image_id)
    assert node.files() == []
    assert node.layers() == []


@pytest.mark.parametrize("config", ["", "{", "[]", "null", '{"config": {"Env": 3}}', "[" * 100_000])
async def test_a_record_whose_config_cannot_be_read_gets_it_back(node, config):
    ids = await two(node)
    image = node.images.find(ids[0])
    await node.store.save(image.replace(config=config))
    await node.start()
    assert node.images.find(ids[0]).config == image.config
    await node.store.save(image.replace(config=config))
    node.images._content.delete(ids[0])
    await node.start()
    assert [one.id for one in node.images.images()] == [ids[1]]
    assert await two(node) == ids


@pytest.mark.parametrize("note", ["", "{}", "null", "[" * 100_000, '{"id": 3}'])
async def test_a_note_that_is_none(node, note):
    ids = await two(node)
    node.note(ids[0]).write_text(note)
    node.note(ids[0]).with_name("sha256-" + "0" * 64 + ".json").write_text('{"id": "sha256:%s"}' % ("0" * 64))
    node.note(ids[0]).with_name("README").write_text("stray")
    before = node.shown()
    await node.start()
    assert node.shown() == before
    await node.start(database=False)
    assert node.shown() == before, "the start before has written it again"
    node.note(ids[0]).write_text(note)
    await node.start(database=False)
    assert [one.id for one in node.images.images()] == [ids[1]]


async def test_fields_of_a_newer_release_are_passed_over(node):
    (image_id, _) = await two(node)
    note = json.loads(node.note(image_id).read_text())
    node.note(image_id).write_text(json.dumps(note | {"signature": {"by": "somebody"}}))
    before = node.shown()
    await node.start(database=False)
    assert node.shown() == before


@pytest.mark.parametrize(
    "folder", ["content/blobs", "content/ingest", "content/images", "content", "snapshots"]
)
@pytest.mark.parametrize("damage", ["deleted", "file", "fifo", "dangling"])
async def test_a_directory_that_is_none(node, folder, damage):
    ids = await two(node)
    path = node.base / folder
    shutil.rmtree(path)
    if damage != "deleted":
        {"file": path.touch, "fifo": lambda: os.mkfifo(path), "dangling": lambda: path.symlink_to("x")}[
            damage
        ]()
    await node.start()
    assert await two(node) == ids
    for image_id in ids:
        await node.images.remove(image_id)
    assert node.layers() == []
    await node.start(database=False)
    assert node.shown() == []


async def test_a_layer_that_is_not_to_be_trusted_costs_its_images_only(node):
    ids = await two(node)
    (own,) = set(node.images.find(ids[0]).chains) - set(node.images.find(ids[1]).chains)
    layer = node.base / "snapshots/copy" / own.replace(":", "-")
    (layer / "synced").unlink()
    (layer / "usage.json").write_bytes(b"")
    await node.start()
    assert [image.id for image in node.images.images()] == [ids[1]]
    assert layer.name not in node.layers()
    assert await two(node) == ids


async def test_a_layer_that_a_running_container_has_is_not_taken_from_under_it(node):
    ids = await two(node)
    layers = node.images.find(ids[0]).chains
    record = ContainerRecord(
        id="c", sandbox_id="s", name="n", state="running", spec=json.dumps({"layers": layers})
    )
    await node.store.save(record)
    for chain_id in layers:
        layer = node.base / "snapshots/copy" / chain_id.replace(":", "-")
        (layer / "synced").unlink()
        (layer / "usage.json").unlink()
    await node.start()
    assert {image.id for image in node.images.images()} == set(ids)
    await node.store.save(record.replace(state="exited"))
    await node.start()
    assert node.shown() == [], "both stand on the layer that has to go"


async def test_what_layers_take_is_found_again_behind_the_start(node):
    await two(node)
    usage = node.images.usage()
    for path in (node.base / "snapshots/copy").glob("*/usage.json"):
        path.write_bytes(b"")
    images = await node.start()
    await images.layers._measuring
    assert images.usage() == usage


async def test_a_failed_pull_leaves_nothing(node):
    await two(node)
    before = node.files(), node.layers()
    node.registry.add("c", "1", "base", "c", "d")
    blobs = sorted((node.registry.tree / "v2/c/blobs").iterdir())
    broken = [blob for blob in blobs if blob.read_bytes()[:2] == b"\x1f\x8b"]
    broken[-1].unlink()
    with pytest.raises((NotInRegistryError, TransportError, DigestMismatchError)):
        await node.pull("c:1")
    assert (node.files(), node.layers()) == before


async def test_a_container_whose_spec_cannot_be_read_keeps_the_layers(node):
    ids = await two(node)
    record = ContainerRecord(id="c", sandbox_id="s", name="n", state="running", spec="{")
    await node.store.save(record)
    layers = node.layers()
    for image_id in ids:
        await node.images.remove(image_id)
    assert node.layers() == layers
    await node.store.delete(record)
    await node.images.collect()
    assert node.layers() == []


async def test_a_spec_is_read_once(node, monkeypatch):
    ids = await two(node)
    spec = json.dumps({"layers": node.images.find(ids[0]).chains})
    for number in range(5):
        record = ContainerRecord(
            id=f"c{number}", sandbox_id="s", name=f"n{number}", state="created", spec=spec
        )
        await node.store.save(record)
    read = []
    real = json.loads
    monkeypatch.setattr("cri.images.readings.json.loads", lambda text: read.append(text) or real(text))
    await node.images.remove(ids[0])
    for number in range(5):
        await node.store.save(node.store.containers[f"c{number}"].replace(state="exited"))
        await node.images.collect()
    assert len(read) == 5
    assert len(node.layers()) == 3
