"""Pulling, naming, sharing and collecting."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

import pytest
from structlog.testing import capture_logs

from baustelle.unpack import CorruptLayerError
from cri.errors import InvalidArgumentError, NotFoundError, UnavailableError
from cri.images.layers import chain_ids
from cri.state import ContainerRecord
from registratur import DigestMismatchError, long_json
from registratur import NotFoundError as NotInRegistryError


async def test_pull_by_tag_and_all_its_names(shelf, registry):
    registry.add("app", "1", "hello", user="1000:1000")
    image_id = await shelf.images.pull(f"{registry.address}/app:1", None)
    image = shelf.images.find(f"{registry.address}/app:1")
    assert image.id == image_id
    assert image.tags == [f"{registry.address}/app:1"]
    (digest,) = image.digests
    for name in (digest, image_id, image_id.removeprefix("sha256:"), image_id[7:19]):
        assert shelf.images.find(name) is image
    assert shelf.images.find(f"{registry.address}/app:2") is None
    assert shelf.layers() == 1
    runnable = shelf.images.runnable(image_id)
    assert runnable.defaults.cmd == ("sleep",)
    assert runnable.defaults.user == "1000:1000"
    assert runnable.reference == digest


@pytest.mark.parametrize("registry", ["sha256", "sha512"], indirect=True)
async def test_an_image_is_known_by_its_id_whatever_its_algorithm(shelf, registry):
    registry.add("app", "1", "hello", "world")
    image_id = await shelf.images.pull(f"{registry.address}/app:1", None)
    algorithm, _, digits = image_id.partition(":")
    image = shelf.images.find(image_id)
    for name in (digits, digits[:12], f"{algorithm}:{digits[:12]}", *image.digests):
        assert shelf.images.find(name) is image
    other = "sha256" if algorithm == "sha512" else "sha512"
    for name in (f"{other}:{digits}", f"{other}:{digits[:12]}", digits[:11], "0" * 64, "0" * 128, "x" * 12):
        assert shelf.images.find(name) is None
    assert shelf.images.runnable(digits).layers == tuple(image.chains)
    assert shelf.content.read(image_id)
    await shelf.store.follow(delete=[image])  # a lost record comes back by its note, or by its config
    again = shelf.reopened(shelf.client)
    await again.load()
    assert again.find(image_id).tags == image.tags
    await again.remove(digits)
    assert again.find(f"{registry.address}/app:1") is None
    assert not list(shelf.content.digests())


async def test_pulls_end_with_the_daemon(shelf, registry, monkeypatch):
    registry.add("app", "1", "hello")
    begun = asyncio.Event()

    async def stuck(*_):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(shelf.snapshots, "begin", stuck)
    pull = asyncio.create_task(shelf.images.pull(f"{registry.address}/app:1", None))
    await begun.wait()
    async with asyncio.timeout(5):
        await shelf.images.abandon()
    with pytest.raises(UnavailableError, match="ending"):
        await pull
    with pytest.raises(UnavailableError, match="ending"):
        await shelf.images.pull(f"{registry.address}/app:1", None)


async def test_pull_by_digest_gives_no_tag(shelf, registry):
    registry.add("app", "1", "hello")
    await shelf.images.pull(f"{registry.address}/app:1", None)
    (digest,) = shelf.images.find(f"{registry.address}/app:1").digests
    await shelf.images.remove(digest)
    assert shelf.images.find(digest) is None
    image_id = await shelf.images.pull(digest, None)
    assert shelf.images.find(image_id).tags == []


async def test_one_image_under_many_names_goes_at_once(shelf, registry):
    registry.add("app", "1", "hello")
    registry.add("other", "latest", "hello")
    first = await shelf.images.pull(f"{registry.address}/app:1", None)
    second = await shelf.images.pull(f"{registry.address}/other", None)
    assert first == second
    assert len(list(shelf.images.images())) == 1
    await shelf.images.remove(f"{registry.address}/other")
    assert shelf.images.find(f"{registry.address}/app:1") is None
    assert shelf.layers() == 0
    assert not list(shelf.content.digests())


async def test_a_tag_belongs_to_one_image(shelf, registry):
    registry.add("app", "latest", "old")
    old = await shelf.images.pull(f"{registry.address}/app", None)
    registry.add("app", "latest", "new")
    new = await shelf.images.pull(f"{registry.address}/app", None)
    assert old != new
    assert shelf.images.find(f"{registry.address}/app").id == new
    assert shelf.images.find(old).tags == []


async def test_shared_layers_are_unpacked_once_and_stay_while_needed(shelf, registry):
    registry.add("a", "1", "base", "a")
    registry.add("b", "1", "base", "b")
    await shelf.images.pull(f"{registry.address}/a:1", None)
    await shelf.images.pull(f"{registry.address}/b:1", None)
    assert shelf.layers() == 3
    await shelf.images.remove(f"{registry.address}/a:1")
    assert shelf.layers() == 2
    shelf.images.runnable(f"{registry.address}/b:1")


async def test_simultaneous_pulls_of_the_same_are_one(shelf, registry):
    registry.add("app", "1", "hello")
    ids = await asyncio.gather(*(shelf.images.pull(f"{registry.address}/app:1", None) for _ in range(5)))
    assert len(set(ids)) == 1
    assert sum("/blobs/" in path for path in registry.requests) == 2


async def test_simultaneous_pulls_that_share_a_layer(shelf, registry):
    registry.add("a", "1", "base", "a")
    registry.add("b", "1", "base", "b")
    await asyncio.gather(*(shelf.images.pull(f"{registry.address}/{name}:1", None) for name in "ab"))
    assert shelf.layers() == 3


@pytest.mark.parametrize("place", ["its own", "mounted"])
async def test_layers_of_a_container_outlive_its_image(shelf, registry, place):
    registry.add("app", "1", "hello")
    await shelf.images.pull(f"{registry.address}/app:1", None)
    layers = list(shelf.images.runnable(f"{registry.address}/app:1").layers)
    mounted = {"layers": [], "mounts": [{"source": "", "target": "/i", "image_layers": layers}]}
    spec = json.dumps({"layers": layers} if place == "its own" else mounted)
    record = ContainerRecord(id="c", sandbox_id="s", name="n", state="running", spec=spec)
    await shelf.store.save(record)
    await shelf.images.remove(f"{registry.address}/app:1")
    assert shelf.layers() == 1
    await shelf.store.delete(record)
    await shelf.images.collect()
    assert shelf.layers() == 0


async def test_held_layers_are_not_collected(shelf, registry):
    registry.add("app", "1", "hello")
    await shelf.images.pull(f"{registry.address}/app:1", None)
    with shelf.images.hold(shelf.images.runnable(f"{registry.address}/app:1").layers):
        await shelf.images.remove(f"{registry.address}/app:1")
        assert shelf.layers() == 1
    await shelf.images.collect()
    assert shelf.layers() == 0


async def test_a_wrong_blob_leaves_nothing(shelf, registry):
    registry.add("app", "1", "hello", "world")
    for blob in (registry.tree / "v2/app/blobs").iterdir():
        content = bytearray(blob.read_bytes())
        if content[:2] == b"\x1f\x8b":
            content[-1] ^= 0xFF
            blob.write_bytes(content)
    with pytest.raises((DigestMismatchError, CorruptLayerError)):
        await shelf.images.pull(f"{registry.address}/app:1", None)
    assert list(shelf.images.images()) == []
    assert shelf.layers() == 0
    await shelf.reopened(shelf.client).load()
    assert not list(shelf.content.digests())


async def test_an_image_that_lost_a_layer_is_dropped_at_start(shelf, registry):
    registry.add("app", "1", "hello")
    await shelf.images.pull(f"{registry.address}/app:1", None)
    for chain_id in await shelf.snapshots.chains():
        await shelf.snapshots.remove(chain_id)
    reopened = shelf.reopened(shelf.client)
    await reopened.load()
    assert list(reopened.images()) == []
    await reopened.pull(f"{registry.address}/app:1", None)


@pytest.mark.parametrize(("release", "count"), [("999.1", 1), ("0.1", 0), ("", 0)])
async def test_an_image_for_a_newer_release_is_told(shelf, registry, release, count):
    registry.add("app", "1", "hello")
    (path,) = (path for path in registry.tree.rglob("manifests/1"))
    manifest = json.loads(path.read_text())
    config = json.loads((path.parents[1] / "blobs" / manifest["config"]["digest"]).read_text())
    data = json.dumps(config | {"os.version": release}).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    (path.parents[1] / "blobs" / digest).write_bytes(data)
    manifest["config"] |= {"digest": digest, "size": len(data)}
    path.write_text(json.dumps(manifest))
    with capture_logs() as logs:
        assert await shelf.images.pull(f"{registry.address}/app:1", None) == digest
    told = [line for line in logs if "newer release" in line["event"]]
    assert len(told) == count
    assert all((line["release"], line["log_level"]) == (release, "warning") for line in told)


async def test_what_is_not_there(shelf, registry):
    with pytest.raises(NotInRegistryError, match="nosuch"):
        await shelf.images.pull(f"{registry.address}/nosuch:1", None)
    with pytest.raises(NotFoundError, match="pull it first"):
        shelf.images.runnable("nosuch")
    for gone in ("nosuch", "0" * 64, "sha256:" + "0" * 64, "sha256:abc"):
        await shelf.images.remove(gone)
    for bad in ("", "app/UPPER", "a b"):
        with pytest.raises(InvalidArgumentError):
            await shelf.images.remove(bad)
    assert shelf.images.find("sha256:" + "0" * 64) is None


def test_chain_ids():
    """By the definition of the image specification, computed by hand."""
    import hashlib

    a, b, c = "sha256:a", "sha256:b", "sha256:c"
    ab = "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
    abc = "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest()
    assert chain_ids([]) == ()
    assert chain_ids([a, b, c]) == (a, ab, abc)


async def test_names_that_are_pulled_at_the_same_time_are_all_kept(shelf, registry):
    for tag in "1234":
        registry.add("app", tag, "hello")
    names = [f"{registry.address}/app:{tag}" for tag in "1234"]
    await asyncio.gather(*(shelf.images.pull(name, None) for name in names))
    (image,) = shelf.images.images()
    assert sorted(image.tags) == names


async def test_pulls_that_come_while_their_layer_is_being_removed(shelf, registry):
    registry.add("a", "1", "base", "a")
    registry.add("b", "1", "base", "b")
    await shelf.images.pull(f"{registry.address}/a:1", None)
    remove = shelf.snapshots.remove

    async def slow(chain_id: str) -> None:
        await asyncio.sleep(0.3)
        await remove(chain_id)

    shelf.snapshots.remove = slow
    removing = asyncio.create_task(shelf.images.remove(f"{registry.address}/a:1"))
    await asyncio.sleep(0.05)
    await asyncio.gather(*(shelf.images.pull(f"{registry.address}/{name}:1", None) for name in "ab"))
    await removing
    assert shelf.layers() == 3
    for image in shelf.images.images():
        assert all(shelf.content.has(digest) for digest in (image.id, image.manifest))


def rewrite_config(registry, repository: str, tag: str, change) -> None:
    """Have an image of the registry with another config."""

    def write(folder: str, content: object) -> tuple[str, int]:
        data = json.dumps(content).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (base / folder / digest).write_bytes(data)
        return digest, len(data)

    base = registry.tree / "v2" / repository
    named = base / "manifests" / tag
    manifest = json.loads(named.read_bytes())
    entry = None
    if "manifests" in manifest:
        index, entry = manifest, manifest["manifests"][0]
        manifest = json.loads((base / "manifests" / entry["digest"]).read_bytes())
    config = json.loads((base / "blobs" / manifest["config"]["digest"]).read_bytes())
    change(config)
    manifest["config"]["digest"], manifest["config"]["size"] = write("blobs", config)
    digest, size = write("manifests", manifest)
    if entry is not None:
        entry["digest"], entry["size"] = digest, size
        digest, _ = write("manifests", index)
    named.write_bytes((base / "manifests" / digest).read_bytes())


async def test_a_config_of_megabytes_is_read_once_and_off_the_loop(shelf, registry, monkeypatch):
    registry.add("big", "1", "hello")
    labels = {f"label{number}": "x" * 90 for number in range(30_000)}
    rewrite_config(registry, "big", "1", lambda config: config["config"].update(Labels=labels))
    threads = []
    loads = long_json.loads

    def note(text, is_read):
        if len(text) > 1_000_000:
            threads.append(threading.current_thread().name)
        return loads(text, is_read)

    monkeypatch.setattr(long_json, "loads", note)
    image_id = await shelf.images.pull(f"{registry.address}/big:1", None)
    read = list(threads)
    assert len(read) == 1
    for _ in range(3):
        assert shelf.images.runnable(image_id).defaults.cmd == ("sleep",)
    assert threads == read
    later = shelf.reopened(shelf.client)
    await later.load()
    assert len(threads) == len(read) + 1
    assert "MainThread" not in threads
    assert later.runnable(image_id) == shelf.images.runnable(image_id)
    assert len(threads) == len(read) + 1


@pytest.mark.parametrize("config", ["{", "[1]", '{"config": 3}', '{"a": "' + "x" * 100_000 + '"'])
async def test_a_config_that_makes_no_sense_is_read_again_from_the_content(shelf, registry, config):
    registry.add("app", "1", "hello")
    registry.add("other", "1", "other")
    damaged = await shelf.images.pull(f"{registry.address}/app:1", None)
    whole = await shelf.images.pull(f"{registry.address}/other:1", None)
    await shelf.store.save(shelf.images.find(damaged).replace(config=config))
    later = shelf.reopened(shelf.client)
    await later.load()
    assert later.runnable(whole).defaults.cmd == ("sleep",)
    assert later.runnable(damaged).defaults.cmd == ("sleep",)
    await later.remove(damaged)
    assert later.find(damaged) is None
