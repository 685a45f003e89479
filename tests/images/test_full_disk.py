"""A disk with images on it that is full, or read-only: what can still be done, and what is said of the rest."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from baustelle.errors import UnpackError
from cri.errors import InternalError, ResourceExhaustedError
from cri.images import ImageStore
from cri.images.disk import refusal
from cri.sandbox.snapshots import CopySnapshotter
from cri.state import Store
from registratur import Client, ContentStore, Platform
from tests.disk import Disk, need_loop_mounts


@pytest.fixture
def disk(tmp_path):
    need_loop_mounts()
    disk = Disk(tmp_path / "disk", tmp_path / "mnt", 64)
    yield disk
    disk.unmount()


@pytest.fixture
async def images(tmp_path, disk):
    """Images on the disk; the database is elsewhere, as it has its own ways with a full disk."""
    store = await Store.open(tmp_path / "elsewhere.db")
    async with Client() as client:
        snapshots = CopySnapshotter(disk.mount_point)
        images = ImageStore(
            store,
            ContentStore(disk.mount_point / "content"),
            snapshots,
            client,
            platforms=[Platform.current()],
            max_parallel=3,
        )
        await images.load()
        yield images
        await images.settle()
        snapshots.wait()
    await store.close()


def on_snapshots(disk):
    return [path.name for path in (disk.mount_point / "snapshots/copy").iterdir()]


def on(disk):
    """What lies below the disk's directories of images."""
    layers = on_snapshots(disk)
    blobs = list((disk.mount_point / "content/blobs").glob("*/*"))
    notes = list((disk.mount_point / "content/images").glob("*"))
    return layers, blobs, notes, list((disk.mount_point / "content/ingest").iterdir())


@pytest.mark.node
async def test_an_image_goes_from_a_full_disk(images, registry, disk):
    registry.add("app", "1", "hello", "world")
    await images.pull(f"{registry.address}/app:1", None)
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        (disk.mount_point / "more").mkdir()
    await images.remove(f"{registry.address}/app:1")
    assert list(images.images()) == []
    images.layers._snapshots.wait()
    assert on(disk) == ([], [], [], [])


@pytest.mark.node
async def test_a_layer_of_nothing_but_directories_goes_from_a_full_disk(disk):
    """Removing moves directories up, and so makes names: in the room of those that have gone before."""
    layers = CopySnapshotter(disk.mount_point)
    chain_id = "sha256:" + "1" * 64
    root = await layers.begin(chain_id, None)
    for number in range(1500):
        (root / f"{number % 3}" / f"directory-with-a-long-name-{number}" / "inside").mkdir(parents=True)
    await layers.commit(chain_id)
    disk.fill()
    await layers.remove(chain_id)
    layers.wait()
    assert on_snapshots(disk) == []


@pytest.mark.node
async def test_a_pull_that_fills_the_disk_leaves_nothing(images, registry, disk):
    registry.add("small", "1", "base")
    await images.pull(f"{registry.address}/small:1", None)
    before = on(disk)
    registry.add("large", "1", "base", "x" * (10 << 20), "y" * (70 << 20))
    with pytest.raises(ResourceExhaustedError, match=f"mounted on {disk.mount_point}, is full.*make room"):
        await images.pull(f"{registry.address}/large:1", None)
    images.layers._snapshots.wait()
    assert on(disk) == before
    assert images.find(f"{registry.address}/large:1") is None
    await images.pull(f"{registry.address}/small:1", None)


@pytest.mark.node
async def test_a_read_only_disk(images, registry, disk):
    registry.add("app", "1", "hello")
    registry.add("other", "1", "hello", "world")
    await images.pull(f"{registry.address}/app:1", None)
    subprocess.run(["mount", "-o", "remount,ro", disk.mount_point], check=True)
    with pytest.raises(InternalError, match="is read-only"):
        await images.pull(f"{registry.address}/other:1", None)
    await images.remove(f"{registry.address}/app:1")
    assert list(images.images()) == []
    subprocess.run(["mount", "-o", "remount,rw", disk.mount_point], check=True)
    await images.collect()
    images.layers._snapshots.wait()
    assert on(disk)[0] == []


@pytest.mark.node
async def test_a_start_on_a_read_only_disk(images, registry, disk):
    registry.add("app", "1", "hello")
    await images.pull(f"{registry.address}/app:1", None)
    subprocess.run(["mount", "-o", "remount,ro", disk.mount_point], check=True)
    await images.load()
    images.runnable(f"{registry.address}/app:1")
    subprocess.run(["mount", "-o", "remount,rw", disk.mount_point], check=True)


def caused(error: Exception, cause: Exception) -> Exception:
    with contextlib.suppress(type(error)):
        raise error from cause
    return error


def test_what_is_no_matter_of_the_disk(tmp_path):
    for error in (OSError(2, "no such file"), UnpackError("bad"), ValueError("x"), OSError("no number")):
        assert refusal(error, "pull x", tmp_path) is None


def test_the_disk_is_named(tmp_path):
    told = refusal(caused(UnpackError("layer entry 'f'"), OSError(28, "No space left")), "pull x", tmp_path)
    assert isinstance(told, ResourceExhaustedError)
    assert str(tmp_path) in str(told)
    assert "layer entry 'f'" in str(told)
