"""Unpacking as root: owners, devices, capabilities, and overlayfs as the judge of its whiteouts."""
# ruff: noqa: PTH208 - names as bytes, and the words of tarfile

import ctypes
import gzip
import hashlib
import io
import os
import stat
import struct
import subprocess
import sys
import tarfile
from pathlib import PurePath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baustelle.layout import OCI_LAYER_GZIP, OCI_MANIFEST, ImageLayout
from baustelle.unpack import UnpackError, Whiteouts

pytestmark = pytest.mark.node
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="Linux only: overlayfs, file capabilities, umoci"
)

LIBC = ctypes.CDLL(None, use_errno=True)


class Overlay:
    """The merged view of layers, lowest first, mounted read-only."""

    def __init__(self, target, layers):
        self.target = os.fsencode(target)
        # The lowest directory is one more, since overlayfs wants two where there is nothing to write to.
        self.options = b"lowerdir=" + b":".join(os.fsencode(layer) for layer in reversed(layers))

    def __enter__(self):
        if LIBC.mount(b"overlay", self.target, b"overlay", 1, self.options) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), self.options)

    def __exit__(self, *_):
        assert LIBC.umount2(self.target, 0) == 0


def compare(tmp_path, layers, put_layer, list_tree):
    """Unpack layers both ways and require that containers would see the same files."""
    applied, merged, empty = (tmp_path / name for name in ("applied", "merged", "empty"))
    for path in (applied, merged, empty):
        path.mkdir()
    directories = [empty]
    for number, layer in enumerate(layers):
        put_layer(applied, layer)
        directories.append(tmp_path / f"layer{number}")
        directories[-1].mkdir()
        put_layer(directories[-1], layer, Whiteouts.OVERLAY)
    with Overlay(merged, directories):
        found, expected = list_tree(merged), list_tree(applied)
    named = set()
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            named |= {os.path.normpath(info.name) for info in tar}

    # overlayfs needs the directory of a whiteout, where there was none below too; real layers have no such thing.
    needed = {os.fspath(above) for name in named if "/.wh." in name for above in PurePath(name).parents}
    found = {path: value for path, value in found.items() if path in expected or path not in needed}

    # Times of directories that no layer names are those of the moment.
    def told(listing):
        return {
            path: value[:6] + (() if stat.S_ISDIR(int(value[0], 8)) else (value[6],)) + value[7:]
            for path, value in listing.items()
        }

    assert told(found) == told(expected)
    return expected


def test_owners_and_set_id_bits(root, new_layer, put_layer):
    layer = new_layer().file("f", b"x", uid=7, gid=8, mode=0o6755).symlink("s", "f", uid=9, gid=10)
    put_layer(
        root, layer.directory("d", uid=11, gid=12, mode=0o3777).add("p", tarfile.FIFOTYPE, uid=2**31, gid=13)
    )
    owners = {name: ((root / name).lstat().st_uid, (root / name).lstat().st_gid) for name in os.listdir(root)}
    assert owners == {"f": (7, 8), "s": (9, 10), "d": (11, 12), "p": (2**31, 13)}
    assert (root / "f").stat().st_mode & 0o7777 == 0o6755
    assert (root / "d").stat().st_mode & 0o7777 == 0o3777


@pytest.mark.parametrize("owner", [{"uid": 2**32 - 1}, {"gid": 2**32}])
def test_impossible_owners(root, new_layer, put_layer, owner):
    with pytest.raises(UnpackError, match=r"'f': owner .* does not exist"):
        put_layer(root, new_layer().file("f", **owner))


@linux_only
def test_devices(root, new_layer, put_layer):
    layer = new_layer().add("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    put_layer(root, layer.add("disk", tarfile.BLKTYPE, devmajor=259, devminor=70000, mode=0o640))
    null, disk = (root / "null").stat(), (root / "disk").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert stat.S_ISBLK(disk.st_mode)
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    assert (os.major(disk.st_rdev), os.minor(disk.st_rdev)) == (259, 70000)
    assert null.st_mode & 0o777 == 0o666


@linux_only
def test_capabilities_survive_the_change_of_owner(root, new_layer, put_layer):
    value = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # vfs_cap_data: cap_net_raw+ep
    header = {
        "SCHILY.xattr.security.capability": os.fsdecode(value),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    layer = new_layer().file("ping", b"x", uid=5, gid=5, mode=0o755, pax_headers=header)
    layer.symlink("l", "ping", pax_headers={"SCHILY.xattr.trusted.t": "v"})
    assert put_layer(root, layer).skipped_xattrs == ()
    assert os.getxattr(root / "ping", "security.capability") == value
    assert os.listxattr(root / "ping") == ["security.capability"]
    assert os.getxattr(root / "l", "trusted.t", follow_symlinks=False) == b"v"
    assert os.listxattr(root / "ping") == ["security.capability"]


def without_root(work):
    """Run `work` in a child that is nobody; what it raises comes back as text."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
        except BaseException as error:
            os.write(send, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text


@linux_only
def test_nobody_can_unpack_but_makes_no_devices(root, new_layer, put_layer):
    os.chown(root, 65534, 65534)
    plain = new_layer().directory("d", mode=0o555).file("d/f", b"x", uid=0, mode=0o4755).bytes()
    device = new_layer().add("null", tarfile.CHRTYPE, devmajor=1, devminor=3).bytes()
    fd = os.open(root, os.O_RDONLY)
    try:
        here = f"/proc/self/fd/{fd}"
        assert without_root(lambda: put_layer(here, plain)) == ""
        assert (root / "d/f").stat().st_uid == 65534
        assert "UnpackError: layer entry 'null': a device node can only be made by root" in without_root(
            lambda: put_layer(here, device)
        )
    finally:
        os.close(fd)


@linux_only
def test_whiteouts_of_overlayfs(tmp_path, new_layer, put_layer, list_tree):
    first = (
        new_layer().file("f").file("d/old").file("d/e/old").file("o/old").file("keep", b"1").symlink("s", "d")
    )
    second = (
        new_layer()
        .file(".wh.f")
        .file("d/new")
        .directory("o")
        .file("o/.wh..wh..opq")
        .file("o/new")
        .file(".wh.s")
    )
    third = (
        new_layer()
        .file("o/.wh.new")
        .file(".wh.d")
        .file("d/e/third")
        .file("f", b"3")
        .file("q/.wh..wh..opq")
        .file("q/x")
    )
    fourth = new_layer().file("keep", b"4")
    layers = [layer.bytes() for layer in (first, second, third, fourth)]
    found = compare(tmp_path, layers, put_layer, list_tree)
    assert sorted(found) == ["d", "d/e", "d/e/third", "f", "keep", "o", "q", "q/x"]


@linux_only
def test_files_and_directories_in_turn(tmp_path, new_layer, put_layer, list_tree):
    first = new_layer().file("x/a").file("x/b").file("y", b"1").bytes()
    second = new_layer().file("x", b"f").directory("x")
    third = new_layer().directory("y").file("y/a").file("x/.wh.c").file("x/c")
    found = compare(tmp_path, [first, second.bytes(), third.bytes()], put_layer, list_tree)
    assert sorted(found) == ["x", "x/c", "y", "y/a"]


@linux_only
def test_a_whiteout_in_a_directory_that_goes_away_too(tmp_path, new_layer, put_layer, list_tree):
    layers = [new_layer().file("e/b").bytes(), new_layer().file("e/.wh.b").file(".wh.e").bytes()]
    assert compare(tmp_path, layers, put_layer, list_tree) == {}
    assert list_tree(tmp_path / "layer1")["e"][3] == 0  # the device number of a whiteout
    assert not (tmp_path / "layer1/e").is_dir()


NAMES = ["a", "a/b", "a/b/c", "a/d", "e", "e/b"]
ENTRIES = st.one_of(
    st.tuples(st.just("file"), st.sampled_from(NAMES)),
    st.tuples(st.just("directory"), st.sampled_from(NAMES)),
    st.tuples(
        st.just("file"), st.sampled_from([".wh.a", "a/.wh.b", "a/b/.wh.c", ".wh.e", "e/.wh.b", "a/.wh.d"])
    ),
    st.tuples(st.just("file"), st.sampled_from(["a/.wh..wh..opq", "a/b/.wh..wh..opq", "e/.wh..wh..opq"])),
)


@linux_only
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(ENTRIES, max_size=6), min_size=1, max_size=3))
def test_both_ways_agree(tmp_path_factory, new_layer, put_layer, list_tree, layers):
    archives = []
    for number, entries in enumerate(layers):
        layer = new_layer()
        for kind, name in entries:
            getattr(layer, kind)(name, mtime=number + 1)
        archives.append(layer.bytes())
    path = tmp_path_factory.mktemp("case")
    try:
        compare(path, archives, put_layer, list_tree)
    except UnpackError as error:
        assert "Not a directory" in str(error)  # noqa: PT017 - an entry below a file fails either way


@linux_only
def test_a_whiteout_spares_what_an_opaque_directory_of_its_layer_holds(
    tmp_path, new_layer, put_layer, list_tree
):
    below = new_layer().file("a/b/old").bytes()
    layer = new_layer().file("a/b/.wh..wh..opq").file("a/b/c").file(".wh.a").bytes()
    assert sorted(compare(tmp_path, [below, layer], put_layer, list_tree)) == ["a", "a/b", "a/b/c"]


@linux_only
def test_umoci_agrees(tmp_path, new_layer, put_layer, list_tree):
    first = (
        new_layer().directory("d", mode=0o1777, mtime=3).file("d/f", b"1" * 5000, uid=5, mode=0o4755, mtime=4)
    )
    first.hard_link("h", "d/f").symlink("abs", "/d").file("gone/x").file("o/x").add("p", tarfile.FIFOTYPE)
    second = new_layer().file(".wh.gone").file("o/.wh..wh..opq").file("o/y", b"y").file("abs/through", b"t")
    layers = [first.bytes(), second.bytes()]
    layout = ImageLayout(tmp_path / "layout")
    blobs = [layout.write(gzip.compress(data)) for data in layers]
    config = layout.write_document(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers],
            },
        }
    )
    manifest = layout.write_document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [blob.descriptor(OCI_LAYER_GZIP) for blob in blobs],
        }
    )
    layout.tag(layout.image_of(manifest), "x:1")
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout.root}:x:1", tmp_path / "umoci"],
        check=True,
        capture_output=True,
    )
    (tmp_path / "ours").mkdir()
    for data in layers:
        put_layer(tmp_path / "ours", data)

    def told(listing):
        """Without the times of directories that the layers do not name."""
        return {path: value for path, value in listing.items() if path not in {"o", "d"}}

    assert told(list_tree(tmp_path / "ours")) == told(list_tree(tmp_path / "umoci"))
