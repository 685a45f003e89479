"""Layers of overlayfs as the snapshotter keeps them: fitted onto those below, cut where one hides them all."""

import io
import tarfile

import pytest

from baustelle.unpack import Whiteouts, unpack
from cri.sandbox.linux.snapshots import OverlaySnapshotter
from cri.sandbox.spec import ContainerSpec, ProcessSpec

pytestmark = pytest.mark.node
CHAIN = tuple(
    f"{algorithm}:{digit * length}"
    for algorithm, digit, length in (("sha512", "1", 128), ("sha256", "2", 64))
)


def layer(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode, *target in entries:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            if target:
                info.type, info.linkname = tarfile.LNKTYPE, target[0]
            info.mode, info.uid = mode, 7
            archive.addfile(info)
    return io.BytesIO(out.getvalue())


async def committed(snapshots, number, archive):
    below = CHAIN[:number][::-1]
    root = await snapshots.begin(CHAIN[number], below[0] if below else None)
    unpacked = unpack(archive, root, whiteouts=Whiteouts.STACKED)
    await snapshots.fit(CHAIN[number], below, unpacked.tree)
    await snapshots.commit(CHAIN[number])


@pytest.fixture
def snapshots(tmp_path):
    return OverlaySnapshotter(tmp_path)


async def test_a_directory_that_a_layer_does_not_name_is_that_below(snapshots):
    await committed(snapshots, 0, layer(("./", 0o751), ("d/", 0o700), ("d/old", 0o600)))
    await committed(snapshots, 1, layer(("d/new", 0o600), ("gone/.wh.x", 0)))
    top = snapshots.layer(CHAIN[1])
    assert [(path.stat().st_mode & 0o777, path.stat().st_uid) for path in (top, top / "d")] == [
        (0o751, 7),
        (0o700, 7),
    ]
    assert [path.name for path in top.iterdir()] == ["d"]


async def test_a_hard_link_to_a_file_below(snapshots):
    await committed(snapshots, 0, layer(("d/f", 0o640)))
    await committed(snapshots, 1, layer(("h", 0, "d/f")))
    top = snapshots.layer(CHAIN[1])
    assert (top / "h").samefile(top / "d/f")
    assert ((top / "h").stat().st_mode & 0o777, (top / "h").stat().st_nlink) == (0o640, 2)


async def test_nothing_is_stacked_below_a_layer_that_hides_it_all(snapshots, tmp_path):
    await committed(snapshots, 0, layer(("old", 0o600)))
    await committed(snapshots, 1, layer(("new", 0o600), (".wh..wh..opq", 0)))
    container = ContainerSpec("c", "s", str(tmp_path), CHAIN, ProcessSpec(argv=("sh",)))
    assert snapshots.prepare(container)["lower"] == [str(snapshots.layer(CHAIN[1]))]
    assert set(await snapshots.chains()) == set(CHAIN)
