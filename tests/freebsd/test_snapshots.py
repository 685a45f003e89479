"""Roots of containers on UFS and on ZFS, with the real kernel. What needs a pool uses one that is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from baustelle import removal
from cri.sandbox.freebsd import kernel, libzfs
from cri.sandbox.freebsd.snapshots import make_snapshotter
from cri.sandbox.freebsd.zfs import ANNOTATION_QUOTA, ZfsSnapshotter
from cri.sandbox.host import HostError
from cri.sandbox.snapshots import CopySnapshotter
from cri.sandbox.spec import ContainerSpec, ProcessSpec

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ONE, TWO, THREE = ("sha256:" + digit * 64 for digit in "123")


def zfs(*arguments: str) -> list[str]:
    output = subprocess.run(
        ["zfs", *arguments], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    return output.splitlines()


@pytest.fixture(scope="session")
def pool() -> str:
    """The roomiest pool of this machine."""
    try:
        pools = subprocess.run(
            ["zpool", "list", "-Hpo", "free,name"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ZFS here: {error}")
    if not pools:
        pytest.skip("no ZFS pool here: zpool create tank DISK")
    return max((int(free), name) for free, name in (line.split("\t") for line in pools.splitlines()))[1]


@pytest.fixture
def dataset(pool):
    """A dataset with a mounted file system, for one test."""
    name = f"{pool}/cri-jails-test-{os.getpid()}"
    zfs("create", "-o", f"mountpoint=/{name}", "-o", "exec=off", "-o", "setuid=off", name)
    try:
        yield name
    finally:
        for mount in reversed(kernel.mounts()):
            if mount.source.startswith(f"{name}/"):
                kernel.unmount(mount, force=True)
        zfs("destroy", "-Rf", name)


@pytest.fixture
def snapshots(dataset) -> ZfsSnapshotter:
    return again(dataset)


def again(dataset: str) -> ZfsSnapshotter:
    """What the next daemon has."""
    found = make_snapshotter(Path(f"/{dataset}"), "auto", kernel)
    assert isinstance(found, ZfsSnapshotter)
    return found


@pytest.fixture
def container(dataset):
    def make(name: str = "container", *layers: str, **annotations: str) -> ContainerSpec:
        directory = Path(f"/{dataset}/{name}")
        directory.mkdir(exist_ok=True)
        return ContainerSpec(
            name, "sandbox", str(directory), layers, ProcessSpec(argv=("sh",)), annotations=annotations
        )

    return make


async def commit(snapshots, chain_id, parent=None, **files):
    root = await snapshots.begin(chain_id, parent)
    for name, text in files.items():
        (root / name).write_text(text)
    return await snapshots.commit(chain_id)


def below(dataset: str) -> list[str]:
    """The datasets and snapshots of layers and containers."""
    names = zfs("list", "-Hrt", "all", "-o", "name", f"{dataset}/cri-jails")
    start = len(f"{dataset}/cri-jails/")
    return sorted(name[start:] for name in names if name.count("/") > dataset.count("/") + 2)


def mounted(dataset: str) -> list[str]:
    return [mount.target for mount in kernel.mounts() if mount.source.startswith(f"{dataset}/")]


# Which one


def test_a_state_directory_on_ufs_gets_copies(tmp_path):
    if kernel.mount_of(str(tmp_path)).kind == "zfs":
        pytest.skip("this machine has its temporary files on ZFS")
    assert isinstance(make_snapshotter(tmp_path, "auto", kernel), CopySnapshotter)
    with pytest.raises(HostError, match="lies on"):
        make_snapshotter(tmp_path, "zfs", kernel)
    with pytest.raises(HostError, match="choose auto"):
        make_snapshotter(tmp_path, "overlay", kernel)


def test_another_dataset_can_be_chosen(tmp_path, dataset):
    found = make_snapshotter(tmp_path, f"zfs:{dataset}", kernel)
    assert isinstance(found, ZfsSnapshotter)
    with pytest.raises(HostError, match=f"belongs to the state directory {tmp_path}"):
        make_snapshotter(tmp_path.parent, f"zfs:{dataset}", kernel)
    with pytest.raises(HostError, match="no-such"):
        make_snapshotter(tmp_path, f"zfs:{dataset}/no-such/one", kernel)


def test_without_the_library_there_are_copies(dataset, monkeypatch):
    def refuse():
        raise FileNotFoundError(2, "No such file", "libzfs_core.so.2")

    monkeypatch.setattr(libzfs, "load", refuse)
    assert isinstance(make_snapshotter(Path(f"/{dataset}"), "auto", kernel), CopySnapshotter)
    with pytest.raises(HostError, match="libzfs_core"):
        make_snapshotter(Path(f"/{dataset}"), "zfs", kernel)


# Layers


async def test_layers(snapshots, dataset):
    root = await snapshots.begin(ONE, None)
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    (root / "data").write_bytes(os.urandom(1 << 20))
    (root / "d").mkdir()
    usage = await snapshots.commit(ONE)
    assert usage.bytes > 1 << 20
    root = await snapshots.begin(TWO, ONE)
    assert sorted(path.name for path in root.iterdir()) == ["d", "data"]
    (root / "more").write_bytes(os.urandom(1 << 19))
    assert list(await snapshots.chains()) == [ONE]
    second = await snapshots.commit(TWO)
    assert 1 << 19 < second.bytes < 1 << 20
    assert second.inodes == 1
    chains = await again(dataset).chains()
    assert set(chains) == {ONE, TWO}
    assert chains[TWO].inodes == 1
    assert chains[ONE].inodes == usage.inodes
    assert mounted(dataset) == []


async def test_what_is_begun_can_be_thrown_away(snapshots, dataset):
    await commit(snapshots, ONE, f="x")
    await snapshots.begin(TWO, ONE)
    await snapshots.abort(TWO)
    await snapshots.abort(TWO)
    assert below(dataset) == [f"layers/{ONE.replace(':', '-')}", f"layers/{ONE.replace(':', '-')}@ready"]
    root = await snapshots.begin(TWO, ONE)
    (root / "half").touch()
    assert list((await snapshots.begin(TWO, None)).iterdir()) == []
    assert again(dataset).remove_unfinished() == [f"unfinished layer {TWO.replace(':', '-')}"]
    assert list(await snapshots.chains()) == [ONE]
    assert mounted(dataset) == []
    assert [path.name for path in Path(f"/{dataset}/snapshots/zfs").iterdir()] == []


async def test_the_first_commit_of_a_chain_wins(snapshots):
    await commit(snapshots, ONE, first="1")
    await commit(snapshots, ONE, second="2")
    assert [path.name for path in snapshots.layer(ONE).iterdir()] == ["first"]


async def test_missing_layers(snapshots, container):
    for use in (lambda: snapshots.layer(THREE), lambda: snapshots.prepare(container("c", THREE))):
        with pytest.raises(HostError, match="pull the image again"):
            use()
    with pytest.raises(HostError, match="pull the image again"):
        await snapshots.begin(TWO, THREE)
    for name in ("../x", "", "new-x", "a:b@c", "sha256:a/b"):
        with pytest.raises(HostError, match="no chain id"):
            await snapshots.begin(name, None)


async def test_layers_go_in_any_order(snapshots, dataset):
    await commit(snapshots, ONE, f="1")
    await commit(snapshots, TWO, ONE, g="2")
    await snapshots.remove(ONE)
    await snapshots.remove(ONE)
    assert list(await snapshots.chains()) == [TWO]
    await commit(snapshots, ONE, f="again")  # while the old one is still there
    await asyncio.gather(snapshots.remove(ONE), snapshots.remove(TWO))
    assert await snapshots.chains() == {}
    assert below(dataset) == []


async def test_a_layer_to_read(snapshots, dataset):
    await commit(snapshots, ONE, f="x")
    path = snapshots.layer(ONE)
    assert path == snapshots.layer(ONE) == again(dataset).layer(ONE)
    assert (path / "f").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        (path / "g").touch()
    assert mounted(dataset) == [str(path)]
    await snapshots.remove(ONE)
    assert not path.exists()
    assert below(dataset) == mounted(dataset) == []


# Roots


async def test_roots(snapshots, dataset, container):
    await commit(snapshots, ONE, f="image")
    one, two = container("one", ONE), container("two", ONE)
    root = Path(snapshots.prepare(one)["source"])
    assert snapshots.prepare(two) == {
        "kind": "zfs", "source": f"{two.directory}/rootfs", "target": f"{two.directory}/rootfs",
    }  # fmt: skip
    assert root == snapshots.writable(one)
    (root / "f").write_text("changed")
    assert (snapshots.writable(two) / "f").read_text() == "image"
    snapshots.prepare(one)
    assert (root / "f").read_text() == "image"
    (root / "tool").write_text("#!/bin/sh\n")
    (root / "tool").chmod(0o4755)
    subprocess.run([root / "tool"], check=True)  # whatever the parent's exec says
    snapshots.discard(one)
    snapshots.discard(one)
    assert not root.exists()
    assert again(dataset).remove_unknown({"two"}) == []
    assert again(dataset).remove_unknown(set()) == ["root filesystem of container two"]
    assert mounted(dataset) == []
    assert len(below(dataset)) == 2


async def test_an_image_without_layers(snapshots, container):
    assert list(Path(snapshots.prepare(container())["source"]).iterdir()) == []


async def test_a_layer_outlives_its_removal_as_long_as_a_container_needs_it(snapshots, dataset, container):
    await commit(snapshots, ONE, f="image")
    spec = container("one", ONE)
    snapshots.prepare(spec)
    await snapshots.remove(ONE)
    assert await snapshots.chains() == {}
    assert (snapshots.writable(spec) / "f").read_text() == "image"
    snapshots.discard(spec)
    assert below(dataset) == []


async def test_usage_is_what_is_not_shared(snapshots, dataset, container):
    root = await snapshots.begin(ONE, None)
    (root / "data").write_bytes(os.urandom(4 << 20))
    await snapshots.commit(ONE)
    spec = container("one", ONE)
    root = Path(snapshots.prepare(spec)["source"])
    assert snapshots.usage(spec).bytes < 1 << 20
    (root / "new").write_bytes(os.urandom(2 << 20))
    (root / "empty").touch()
    libzfs.load().sync(dataset)
    usage = snapshots.usage(spec)
    assert 2 << 20 <= usage.bytes < 4 << 20
    assert usage.inodes == 2


async def test_a_quota(snapshots, container):
    await commit(snapshots, ONE, f="x" * (1 << 20))
    spec = container("one", ONE, **{ANNOTATION_QUOTA: "4M"})
    root = Path(snapshots.prepare(spec)["source"])
    with pytest.raises(OSError, match="Disc quota exceeded"), (root / "big").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    for value in ("4 M", "-1", "0", "ten", "99999999P", "1X", ""):
        with pytest.raises(HostError, match=ANNOTATION_QUOTA):
            snapshots.prepare(container("two", ONE, **{ANNOTATION_QUOTA: value}))


async def test_a_root_that_is_busy_goes_all_the_same(snapshots, dataset, container):
    await commit(snapshots, ONE, f="x")
    spec = container("one", ONE)
    root = Path(snapshots.prepare(spec)["source"])
    with (root / "f").open():
        snapshots.discard(spec)
    assert mounted(dataset) == []
    assert not any(name.startswith("containers/") for name in below(dataset))


def test_nothing_is_removed_of_a_mounted_file_system(snapshots, container):
    spec = container()
    root = Path(snapshots.prepare(spec)["source"])
    (root / "precious").touch()
    with pytest.raises(OSError, match="mounted"):
        removal.remove_tree(spec.directory)
    assert (root / "precious").exists()


# Crashes


class DiedError(BaseException):
    """The daemon ends here; nothing tidies up."""


class Dying:
    """A library, or a kernel, in which a call is the last, before or after it took effect."""

    def __init__(self, real, last: str, moment: str) -> None:
        self._real, self._last, self._moment = real, last, moment
        self.alive = True

    def __getattr__(self, name):
        real = getattr(self._real, name)

        def call(*arguments, **options):
            if not self.alive:
                raise DiedError
            if name == self._last and self._moment == "before":
                self.alive = False
                raise DiedError
            found = real(*arguments, **options)
            if name == self._last:
                self.alive = False
                raise DiedError
            return found

        return call


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "last",
    ["create", "clone", "mount", "sync", "unmount", "snapshot", "rename", "destroy_snapshot", "destroy"],
)
async def test_a_crash_leaves_nothing_for_ever(snapshots, dataset, container, last, moment):
    await commit(snapshots, ONE, f="image")
    spec = container("one", TWO)
    dying = Dying(libzfs.load(), last, moment)
    if last in ("mount", "unmount"):
        snapshots._calls = dying = Dying(kernel, last, moment)
    else:
        snapshots._zfs = dying
    with contextlib.suppress(DiedError):
        await commit(snapshots, TWO, ONE, g="more")
        snapshots.prepare(spec)
        snapshots.layer(TWO)
        snapshots.discard(spec)
        await snapshots.remove(TWO)
        await snapshots.begin(THREE, None)
    assert not dying.alive
    successor = again(dataset)
    successor.remove_unfinished()
    successor.remove_unknown({"one"})
    assert set(await successor.chains()) in ({ONE}, {ONE, TWO})
    if TWO in await successor.chains():
        root = Path(successor.prepare(spec)["source"])
        assert sorted(path.name for path in root.iterdir()) == ["f", "g"]
        successor.layer(TWO)
    successor.discard(spec)
    for chain_id in (ONE, TWO, THREE):
        await successor.remove(chain_id)
    assert below(dataset) == mounted(dataset) == []
    assert list(Path(f"/{dataset}/snapshots/zfs").iterdir()) == []
