"""Snapshotters that need no particular kernel."""

import asyncio
import os
import time
from pathlib import Path

import pytest
import structlog

from baustelle.removal import remove_tree
from cri.sandbox.host import HostError
from cri.sandbox.snapshots import BEGUN, GONE, CopySnapshotter
from cri.sandbox.spec import ContainerSpec, ProcessSpec

ONE, TWO, THREE = ("sha256:" + digit * 64 for digit in "123")


@pytest.fixture
def layers(tmp_path) -> CopySnapshotter:
    return CopySnapshotter(tmp_path)


@pytest.fixture
def container(tmp_path):
    def make(name: str = "container", *layers: str) -> ContainerSpec:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        return ContainerSpec(name, "sandbox", str(directory), layers, ProcessSpec(argv=("sh",)))

    return make


async def committed(layers, chain_id, parent=None, **files) -> Path:
    root = await layers.begin(chain_id, parent)
    for name, text in files.items():
        (root / name).write_text(text)
    await layers.commit(chain_id)
    return layers.layer(chain_id)


async def test_layers(layers):
    root = await layers.begin(ONE, None)
    (root / "f").write_text("x")
    usage = await layers.commit(ONE)
    root = await layers.begin(TWO, ONE)
    assert (root / "f").read_text() == "x"
    assert list(await layers.chains()) == [ONE]
    await layers.abort(TWO)
    await layers.abort(TWO)
    assert await layers.chains() == {ONE: usage}
    await layers.remove(ONE)
    await layers.remove(ONE)
    assert await layers.chains() == {}


async def test_the_first_commit_of_a_chain_wins(layers):
    root = await committed(layers, ONE, first="1")
    again = await layers.begin(ONE, None)
    assert list(again.iterdir()) == []
    await layers.commit(ONE)
    assert [path.name for path in root.iterdir()] == ["first"]


async def test_missing_layers(layers, container):
    for use in (lambda: layers.layer(THREE), lambda: layers.prepare(container("c", THREE))):
        with pytest.raises(HostError, match="pull the image again"):
            use()
    with pytest.raises(HostError, match="pull the image again"):
        await layers.begin(TWO, THREE)


async def test_what_was_begun_goes(layers):
    await committed(layers, ONE)
    await layers.begin(TWO, ONE)
    assert layers.remove_unfinished() == [f"unfinished layer {TWO.replace(':', '-')}"]
    assert layers.remove_unfinished() == []
    assert list(await layers.chains()) == [ONE]


@pytest.mark.parametrize("name", ["../x", "", "new-x", "."])
async def test_what_is_no_chain_id(layers, name):
    with pytest.raises(HostError, match="no chain id"):
        await layers.begin(name, None)


async def test_roots_of_containers(layers, container):
    await committed(layers, ONE, f="image")
    await committed(layers, TWO, ONE, g="image")
    one, two = container("one", ONE, TWO), container("two", ONE, TWO)
    root = Path(layers.prepare(one)["source"])
    assert sorted(path.name for path in root.iterdir()) == ["f", "g"]
    assert root == layers.writable(one) == Path(one.directory, "rootfs")
    (root / "f").write_text("changed")
    assert (Path(layers.prepare(two)["source"]) / "f").read_text() == "image"
    assert (layers.layer(TWO) / "f").read_text() == "image"
    assert layers.usage(one).inodes == 3
    layers.prepare(one)
    assert (root / "f").read_text() == "image"
    layers.discard(one)
    layers.discard(one)
    assert list(Path(one.directory).iterdir()) == []
    assert Path(two.directory, "rootfs/f").exists()


async def test_an_image_without_layers(layers, container):
    assert list(Path(layers.prepare(container())["source"]).iterdir()) == []


# What a power cut, or an operator, has done to the directories


def again(tmp_path) -> CopySnapshotter:
    return CopySnapshotter(tmp_path)


def directory_of(layers, chain_id) -> Path:
    return layers.layer(chain_id).parent


async def test_a_layer_is_on_disk_before_it_has_its_name(tmp_path):
    seen = []

    def sync(fd):
        directory = tmp_path / "snapshots/copy"
        seen.append(
            (os.fstat(fd).st_dev == directory.stat().st_dev, [one.name for one in directory.iterdir()])
        )

    layers = CopySnapshotter(tmp_path, sync)
    await committed(layers, ONE, f="x")
    assert seen == [(True, [f"new-{ONE.replace(':', '-')}"])]
    assert len(await layers.chains()) == 1


async def test_a_layer_that_cannot_be_synced_is_none(tmp_path):
    def fail(fd):
        raise OSError(5, "Input/output error")

    layers = CopySnapshotter(tmp_path, fail)
    with pytest.raises(OSError, match="Input/output"):
        await committed(layers, ONE, f="x")
    await layers.abort(ONE)
    assert await layers.chains() == {}
    assert list((tmp_path / "snapshots/copy").iterdir()) == []


async def test_layers_that_arrive_together_share_syncs(tmp_path):
    syncs = []

    def sync(fd):
        syncs.append(fd)
        time.sleep(0.2)

    layers = CopySnapshotter(tmp_path, sync)
    ids = [f"sha256:{number:064}" for number in range(8)]
    for chain_id in ids:
        await layers.begin(chain_id, None)
    await asyncio.gather(*(layers.commit(chain_id) for chain_id in ids))
    assert len(syncs) <= 4
    assert len(await layers.chains()) == 8


def fifo_in(path):
    path.unlink()
    os.mkfifo(path)


def link_in(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


def directory_in(path):
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


DAMAGE = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "random": lambda path: path.write_bytes(os.urandom(64)),
    "nested": lambda path: path.write_bytes(b"[" * 4000),
    "huge": lambda path: path.write_bytes(b" " * 100_000 + path.read_bytes()),
    "other": lambda path: path.write_text('{"bytes": true, "inodes": -1}'),
    "list": lambda path: path.write_text("[1, 2]"),
    "directory": directory_in,
    "fifo": fifo_in,
    "link": link_in,
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_the_usage_of_a_synced_layer_is_measured_again(layers, tmp_path, damage):
    await committed(layers, ONE, f="x" * 5000)
    usage = (await layers.chains())[ONE]
    DAMAGE[damage](directory_of(layers, ONE) / "usage.json")
    later = again(tmp_path)
    assert await later.chains() == {ONE: None}
    assert await later.doubtful() == {}
    assert await later.measure(ONE) == usage
    assert await again(tmp_path).chains() == {ONE: usage}


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("directory", "fifo", "link")])
async def test_a_layer_that_was_not_synced_and_has_lost_its_usage_is_not_trusted(layers, tmp_path, damage):
    await committed(layers, ONE, f="x")
    (directory_of(layers, ONE) / "synced").unlink()  # as releases left it that knew no such file
    assert list(await layers.chains()) == [ONE]
    DAMAGE[damage](directory_of(layers, ONE) / "usage.json")
    later = again(tmp_path)
    assert await later.chains() == {}
    assert "usage.json cannot be read" in (await later.doubtful())[ONE]
    await later.measure(ONE)
    assert await again(tmp_path).chains() == {}, "measuring makes no layer whole"
    await committed(later, ONE, f="good")
    assert list(await later.chains()) == [ONE]
    assert (later.layer(ONE) / "f").read_text() == "good"


def without_files(path):
    remove_tree(path / "fs")


def files_elsewhere(path):
    remove_tree(path / "fs")
    (path / "fs").symlink_to("/etc")


def files_as_file(path):
    remove_tree(path / "fs")
    (path / "fs").write_text("x")


def whole_as_file(path):
    remove_tree(path)
    path.write_text("x")


def whole_as_fifo(path):
    remove_tree(path)
    os.mkfifo(path)


def whole_as_link(path):
    remove_tree(path)
    path.symlink_to("/etc")


@pytest.mark.parametrize(
    "damage",
    [without_files, files_elsewhere, files_as_file, whole_as_file, whole_as_fifo, whole_as_link],
)
async def test_a_layer_without_its_files(layers, tmp_path, damage):
    await committed(layers, ONE, f="x")
    await committed(layers, TWO, f="y")
    damage(directory_of(layers, ONE))
    later = again(tmp_path)
    assert list(await later.chains()) == [TWO]
    assert list(await later.doubtful()) == [ONE]
    await committed(later, ONE, f="anew")
    assert (later.layer(ONE) / "f").read_text() == "anew"
    damage(directory_of(layers, ONE))
    await later.remove(ONE)
    later.wait()
    assert [path.name for path in (tmp_path / "snapshots/copy").iterdir()] == [TWO.replace(":", "-")]
    assert Path("/etc/passwd").exists()


async def test_strays_are_named_and_left_alone(layers, tmp_path):
    await committed(layers, ONE, f="x")
    directory = tmp_path / "snapshots/copy"
    (directory / "lost+found").mkdir()
    (directory / "lost+found/#12").write_text("x")
    (directory / "notes.txt").write_text("x")
    os.mkfifo(directory / "fifo")
    (directory / "sha256-short").mkdir()
    with structlog.testing.capture_logs() as logs:
        assert list(await again(tmp_path).chains()) == [ONE]
    (warning,) = logs
    assert warning["names"] == ["fifo", "lost+found", "notes.txt", "sha256-short"]
    assert again(tmp_path).remove_unfinished() == []
    assert len(list(directory.iterdir())) == 5


@pytest.mark.parametrize("kind", ["file", "fifo", "dangling link"])
@pytest.mark.parametrize("which", ["snapshots", "snapshots/copy"])
async def test_something_else_in_the_place_of_the_directory(tmp_path, which, kind):
    path = tmp_path / which
    path.parent.mkdir(exist_ok=True)
    {"file": Path.touch, "fifo": os.mkfifo, "dangling link": lambda path: path.symlink_to("x")}[kind](path)
    layers = CopySnapshotter(tmp_path)
    await committed(layers, ONE, f="x")
    assert os.path.lexists(tmp_path / f"{which}.damaged-1")


async def test_a_removal_goes_on_behind_and_is_finished_by_the_next_start(layers, tmp_path):
    await committed(layers, ONE, f="x")
    layers._rubbish.put = lambda path: True  # the daemon dies before it gets to it
    await layers.remove(ONE)
    assert await layers.chains() == {}
    (left,) = (tmp_path / "snapshots/copy").iterdir()
    assert (left / "fs/f").exists()
    later = again(tmp_path)
    assert later.remove_unfinished() == [f"removed layer {ONE.replace(':', '-')}"]
    later.wait()
    assert list((tmp_path / "snapshots/copy").iterdir()) == []


async def test_a_layer_comes_again_while_its_old_files_are_being_deleted(layers, tmp_path):
    await committed(layers, ONE, f="old")
    await layers.remove(ONE)
    await committed(layers, ONE, f="new")
    layers.wait()
    assert (layers.layer(ONE) / "f").read_text() == "new"
    assert list(await again(tmp_path).chains()) == [ONE]


async def test_a_directory_without_room_for_another_name(layers, tmp_path, monkeypatch):
    await committed(layers, ONE, f="x")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    await layers.remove(ONE)
    assert list((tmp_path / "snapshots/copy").iterdir()) == []


def test_an_earlier_release_takes_what_is_being_removed_for_unfinished():
    assert GONE.startswith(BEGUN)
