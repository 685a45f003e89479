"""Hard links of a layer to files of the layers below, on overlayfs: as the plain apply makes them."""
# ruff: noqa: PTH208

import io
import os
import stat
import sys
import tarfile

import pytest

from baustelle.restack import restack
from baustelle.unpack import UnpackError, Whiteouts, unpack
from tests.baustelle.test_unpack_node import Overlay

pytestmark = [pytest.mark.node, pytest.mark.skipif(sys.platform != "linux", reason="overlayfs is Linux's")]


TRUSTED = {"SCHILY.xattr.trusted.x": "y"}


class EndedError(Exception):
    """What a check raises."""


@pytest.fixture
def put_stack(tmp_path, new_layer):
    """Unpack layers, lowest first, each for itself, and fit them; their directories."""
    directories = []

    def put(*layers, check=lambda: None):
        for layer in layers:
            directory = tmp_path / f"layer{len(directories)}"
            directory.mkdir()
            unpacked = unpack(io.BytesIO(layer.bytes()), directory, whiteouts=Whiteouts.STACKED)
            restack(directory, unpacked.tree, directories[::-1], check)
            directories.append(directory)
        return directories

    return put


def one_file(*paths):
    return len({path.lstat().st_ino for path in paths}) == 1


def test_the_file_is_copied_up_with_all_it_has(put_stack, new_layer, tmp_path):
    base = new_layer().directory("d", mode=0o710, uid=5, mtime=3)
    base.file("d/f", b"data", mode=0o4751, uid=7, gid=8, mtime=9, pax_headers={"SCHILY.xattr.user.x": "y"})
    _, top = put_stack(base, new_layer().hard_link("one", "d/f").hard_link("two", "d/f"))
    assert one_file(top / "one", top / "two", top / "d/f")
    found = (top / "one").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime, found.st_nlink) == (
        *(0o4751, 7, 8, 9, 3),
    )
    assert (os.getxattr(top / "one", "user.x"), (top / "one").read_bytes()) == (b"y", b"data")
    made = (top / "d").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_mtime) == (0o710, 5, 3)
    assert sorted(os.listdir(top)) == ["d", "one", "two"]


def test_special_files_and_links(put_stack, new_layer):
    base = new_layer().symlink("s", "/nowhere", uid=3, mtime=4)
    base.add("p", tarfile.FIFOTYPE, mode=0o622, uid=5, pax_headers=TRUSTED)
    base.add("c", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, mtime=6)
    layer = new_layer().hard_link("s2", "s").hard_link("p2", "p").hard_link("c2", "c")
    _, top = put_stack(base, layer)
    for name in ("s", "p", "c"):
        assert one_file(top / name, top / f"{name}2")
    assert (str((top / "s2").readlink()), (top / "s2").lstat().st_uid, (top / "s2").lstat().st_mtime) == (
        *("/nowhere", 3, 4),
    )
    assert (stat.S_ISFIFO((top / "p2").stat().st_mode), (top / "p2").stat().st_uid) == (True, 5)
    assert os.getxattr(top / "p2", "trusted.x") == b"y"
    assert ((top / "c2").stat().st_rdev, (top / "c2").stat().st_mtime) == (os.makedev(1, 3), 6)


def test_holes_stay_holes_and_large_files_can_be_interrupted(put_stack, new_layer):
    bottom = put_stack(new_layer().file("f"))[0]
    with (bottom / "f").open("r+b") as file:
        file.seek(1 << 30)
        file.write(b"end")
    top = put_stack(new_layer().hard_link("h", "f"))[1]
    assert ((top / "h").stat().st_size, (top / "h").stat().st_blocks < 64) == ((1 << 30) + 3, True)
    with (bottom / "f").open("r+b") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    calls = 0

    def check():
        nonlocal calls
        calls += 1
        aside = [path for path in bottom.parent.glob("layer2/.wh..wh.cri-jails-*") if path.stat().st_size]
        if aside:
            raise EndedError

    with pytest.raises(EndedError):
        put_stack(new_layer().hard_link("k", "h"), check=check)
    assert calls


@pytest.mark.parametrize("later", ["replaced", "whiteout", "opaque", "directory"])
def test_what_becomes_of_the_target_later_does_not_matter(put_stack, new_layer, tmp_path, later):
    layer = new_layer().hard_link("h", "d/f")
    if later == "replaced":
        layer.file("d/f", b"new")
    elif later == "whiteout":
        layer.file("d/.wh.f")
    elif later == "opaque":
        layer.file("d/.wh..wh..opq")
    else:
        layer.file("d/f/x")
    directories = put_stack(new_layer().file("d/f", b"old"), layer)
    (tmp_path / "merged").mkdir()
    with Overlay(tmp_path / "merged", directories):
        assert (tmp_path / "merged/h").read_bytes() == b"old"
        shown = tmp_path / "merged/d/f"
        if later == "replaced":
            assert shown.read_bytes() == b"new"
        else:
            assert shown.exists() == (later == "directory")


def test_all_names_of_the_file_below_stay_one(put_stack, new_layer, tmp_path):
    base = new_layer().file("a/f", b"1").hard_link("b/g", "a/f").hard_link("c/gone", "a/f")
    directories = put_stack(base, new_layer().file("c/.wh.gone").hard_link("h", "b/g"))
    directories = put_stack(new_layer().hard_link("i", "h"))
    (tmp_path / "merged").mkdir()
    merged = tmp_path / "merged"
    with Overlay(merged, directories):
        assert one_file(*(merged / name for name in ("a/f", "b/g", "h", "i")))
        assert (merged / "i").stat().st_nlink == 4
        assert os.listdir(merged / "c") == []


def test_a_target_through_links_of_lower_layers(put_stack, new_layer, tmp_path):
    base = new_layer().file("usr/lib/f", b"1").symlink("lib", "/../usr/lib").symlink("out", "../../..")
    top = put_stack(base, new_layer().hard_link("lib/g", "lib/f").hard_link("h", "out/usr/lib/f"))[1]
    assert one_file(top / "h", top / "usr/lib/f", top / "usr/lib/g")
    assert sorted(os.listdir(top)) == ["h", "usr"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere", "'nowhere' is not in the layer, nor in one below"),
        ("d", "'d' is a directory"),
        ("d/f/x", "'d/f/x': Not a directory"),
        ("loop/x", "'loop/x': Too many levels"),
        ("secret/x", "not in the layer, nor in one below"),
        ("gone", "'gone' is not in the layer"),
    ],
)
def test_a_target_that_is_none(put_stack, new_layer, tmp_path, target, reason):
    (tmp_path / "x").write_text("outside")
    base = new_layer().file("d/f").file("gone").symlink("loop", "loop").symlink("secret", str(tmp_path))
    with pytest.raises(UnpackError, match=f"layer entry 'h': its hard link target .*{reason}"):
        put_stack(base, new_layer().file(".wh.gone").hard_link("h", target))


def test_a_link_that_is_replaced_must_lead_somewhere_too(put_stack, new_layer):
    with pytest.raises(UnpackError, match="'nowhere' is not in the layer"):
        put_stack(new_layer().hard_link("h", "nowhere").file("h"))


def test_directories_keep_their_times(put_stack, new_layer):
    base = new_layer().directory(".", mtime=5).directory("d", mtime=6).file("d/f")
    layer = new_layer().directory("d", mtime=7).hard_link("d/g", "d/f").directory("e", mtime=8)
    top = put_stack(base, layer.hard_link("e/h", "d/f"))[1]
    assert [(top / name).stat().st_mtime for name in (".", "d", "e")] == [5, 7, 8]


def test_a_layer_that_nobody_fits_is_refused(put_layer, new_layer, tmp_path):
    with pytest.raises(UnpackError, match="'f' is not in the layer"):
        put_layer(tmp_path, new_layer().hard_link("h", "f"), Whiteouts.OVERLAY)


def test_of_a_file_named_by_two_paths_the_last_wins(put_stack, new_layer):
    base = new_layer().directory("usr/lib").symlink("lib", "usr/lib")
    layer = (
        new_layer().file("usr/lib/a", b"1").file("lib/a", b"2").file("lib/b", b"1").file("usr/lib/b", b"2")
    )
    top = put_stack(base, layer)[1]
    assert ((top / "usr/lib/a").read_bytes(), (top / "usr/lib/b").read_bytes()) == (b"2", b"2")


def test_a_whiteout_below_a_file_deletes_nothing(put_stack, put_layer, new_layer, tmp_path):
    def layers():
        return new_layer().file("d", b"1"), new_layer().file("d/.wh.x").hard_link("h", "d")

    top = put_stack(*layers())[1]
    (tmp_path / "applied").mkdir()
    for layer in layers():
        put_layer(tmp_path / "applied", layer)
    for root in (top, tmp_path / "applied"):
        assert (root / "d").read_bytes() == b"1"
        assert one_file(root / "d", root / "h")
