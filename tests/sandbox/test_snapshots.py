"""Snapshotters that need no particular kernel."""

from pathlib import Path

import pytest

from cri.sandbox.host import HostError
from cri.sandbox.snapshots import CopySnapshotter
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
