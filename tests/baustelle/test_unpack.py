"""Layers without root: contents, deletions, and archives made to do harm."""
# ruff: noqa: A002, PTH115, PTH119, PTH208 - names as bytes, and the words of tarfile

import gzip
import hashlib
import io
import os
import stat
import tarfile
import tracemalloc
import zlib

import pytest
import zstandard

from baustelle import xattrs
from baustelle.unpack import CorruptLayerError, UnpackError, Whiteouts, unpack

ALL_FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]


@pytest.mark.parametrize("format", ALL_FORMATS)
def test_what_went_in_comes_out(root, new_layer, put_layer, format):
    layer = new_layer(format).directory("d/", mode=0o750, mtime=5)
    layer.file("d/f", b"x" * 70000, mode=0o4711, mtime=7).symlink("d/s", "../nowhere", mtime=9)
    layer.hard_link("h", "d/f").add("p", tarfile.FIFOTYPE, mode=0o622, mtime=11)
    data = layer.bytes()
    unpacked = put_layer(root, data)
    assert unpacked.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (unpacked.size, unpacked.entries, unpacked.skipped_xattrs) == (70000, 5, ())
    assert (root / "d/f").read_bytes() == b"x" * 70000
    assert (root / "d/f").stat().st_mode & 0o7777 == 0o4711
    assert (root / "h").stat().st_ino == (root / "d/f").stat().st_ino
    assert (root / "d").stat().st_mode & 0o7777 == 0o750
    assert stat.S_ISFIFO((root / "p").stat().st_mode)
    assert (root / "p").stat().st_mode & 0o7777 == 0o622
    times = {name: (root / name).lstat().st_mtime for name in ("d", "d/f", "d/s", "p")}
    assert times == {"d": 5, "d/f": 7, "d/s": 9, "p": 11}


def test_times_keep_their_nanoseconds(root, new_layer, put_layer):
    put_layer(root, new_layer().file("f", pax_headers={"mtime": "1700000000.123456789"}))
    assert (root / "f").stat().st_mtime_ns == 1700000000_123456789


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_odd_names(root, new_layer, put_layer, format):
    long = "/".join(["n" * 200] * 3)
    odd = os.fsdecode(b"latin-\xe9\n")
    put_layer(root, new_layer(format).file(long, b"1").symlink(odd, "t" * 150).file("ünï", b"2"))
    assert (root / long).read_bytes() == b"1"
    assert os.readlink(os.fsencode(root) + b"/latin-\xe9\n") == b"t" * 150
    assert (root / "ünï").read_bytes() == b"2"


COMPRESSIONS = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "gzip members": lambda data: b"".join(gzip.compress(data[n : n + 999]) for n in range(0, len(data), 999)),
    "gzip padded": lambda data: gzip.compress(data) + bytes(100),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "zstd frames": lambda data: (
        b"\x50\x2a\x4d\x18\x03\0\0\0abc"
        + b"".join(zstandard.compress(data[n : n + 999]) for n in range(0, len(data), 999))
    ),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressions(root, new_layer, put_layer, name):
    content = os.urandom(3000) + bytes(2_000_000)
    plain = new_layer().file("f", content).bytes()
    unpacked = put_layer(root, COMPRESSIONS[name](plain))
    assert (root / "f").read_bytes() == content
    assert unpacked.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_truncated_layers_are_refused(root, new_layer, put_layer, name):
    data = COMPRESSIONS[name](new_layer().file("f", os.urandom(5000)).bytes())
    for length in (5, 300, len(data) // 4):
        with pytest.raises(CorruptLayerError, match=r"truncated|damaged"):
            put_layer(root, data[:length])


def test_a_truncated_checksum_is_noticed(root, new_layer, put_layer):
    plain = new_layer().file("f", b"x").bytes()
    for data in (gzip.compress(plain), zstandard.ZstdCompressor(write_checksum=True).compress(plain)):
        with pytest.raises(CorruptLayerError, match="truncated"):
            put_layer(root, data[:-1])


def test_what_is_no_archive_is_refused(root, put_layer, new_layer):
    for data in (
        b"<html>" + bytes(1000),
        b"\x1f\x8bnot gzip",
        gzip.compress(b"hello" * 500),
        zstandard.compress(b"x"),
    ):
        with pytest.raises(CorruptLayerError):
            put_layer(root, data)
    damaged = bytearray(new_layer().file("a", b"").file("b", b"").file("c", b"").bytes())
    damaged[512 + 3] ^= 1  # the second header: no silent end of the archive
    with pytest.raises(CorruptLayerError, match="checksum"):
        put_layer(root, bytes(damaged))


def test_bytes_after_the_archive_are_read_and_hashed(root, new_layer):
    plain = new_layer().file("f", b"x").bytes() + b"tail" * 1000
    stream = io.BytesIO(gzip.compress(plain))
    assert unpack(stream, root, whiteouts=Whiteouts.APPLY).diff_id[7:] == hashlib.sha256(plain).hexdigest()
    assert stream.read() == b""


def test_gzip_bombs_do_not_fill_memory(root, new_layer, put_layer):
    header = tarfile.TarInfo("zeros")
    header.size = 300_000_000
    deflate = zlib.compressobj(9, wbits=31)
    data = [deflate.compress(header.tobuf(tarfile.USTAR_FORMAT))]
    data += [deflate.compress(bytes(10_000_000)) for _ in range(10)] + [deflate.flush()]
    tracemalloc.start()
    with pytest.raises(CorruptLayerError, match="truncated tar"):
        put_layer(root, b"".join(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


# Harm


@pytest.mark.parametrize("name", ["/abs", "../up", "d/../../../up", "./../up", "//abs", "d/./../../up"])
def test_names_do_not_lead_out(root, new_layer, put_layer, name):
    put_layer(root, new_layer().file(name, b"x"))
    assert (root / os.path.basename(name)).read_bytes() == b"x"


@pytest.mark.parametrize("target", ["../outside", "../../../../../../../../tmp", "/", "."])
def test_links_do_not_lead_out(root, new_layer, put_layer, tmp_path, target):
    put_layer(root, new_layer().symlink("out", target).file("out/secret", b"x").directory("out/d"))
    inside = list(root.rglob("secret"))
    assert [path.read_bytes() for path in inside] == [b"x"]


def test_an_absolute_link_to_the_outside(root, new_layer, put_layer, tmp_path):
    outside = str(tmp_path / "outside")
    put_layer(
        root,
        new_layer()
        .symlink("out", outside)
        .file("out/secret", b"x")
        .file("out/.wh.a")
        .file("out/.wh..wh..opq"),
    )
    assert (root / outside[1:] / "secret").read_bytes() == b"x"


def test_a_file_replaces_a_link_and_does_not_follow_it(root, new_layer, put_layer):
    put_layer(root, new_layer().symlink("f", "../outside/secret").file("f", b"x"))
    assert (root / "f").read_bytes() == b"x"
    assert not (root / "f").is_symlink()


def test_hard_links_do_not_lead_out(root, new_layer, put_layer, tmp_path):
    secret = str(tmp_path / "outside/secret")
    for link in (secret, "../outside/secret"):
        with pytest.raises(UnpackError, match=r"'h': its hard link target .* is not in the layer"):
            put_layer(root, new_layer().hard_link("h", link))
    with pytest.raises(UnpackError, match="hard link"):
        put_layer(root, new_layer().symlink("d", str(tmp_path / "outside")).hard_link("h", "d/secret"))
    put_layer(root, new_layer().symlink("s", secret).hard_link("h", "s").file("h", b"x"))
    assert (root / "h").read_bytes() == b"x"


def test_the_metadata_of_a_replaced_directory_goes_nowhere(root, new_layer, put_layer, tmp_path):
    before = (tmp_path / "outside").stat()
    layer = new_layer().directory("d", mode=0o777, mtime=1).directory("d/e", mode=0o777)
    put_layer(root, layer.file("d", b"").symlink("d", "../outside").directory("x"))
    assert (tmp_path / "outside").stat() == before
    assert (root / "d").is_symlink()


def test_a_swapped_directory_is_noticed(root, new_layer, put_layer):
    """The parent of the third entry was open already when the second changed what its name means."""
    layer = (
        new_layer().directory("a").file("a/b/f", b"1").file("a/b", b"file").directory("c").symlink("a", "c")
    )
    put_layer(root, layer.file("a/b/f", b"2"))
    assert (root / "c/b/f").read_bytes() == b"2"
    layer = (
        new_layer()
        .directory("p")
        .symlink("p/l", ".")
        .file("p/l/f", b"1")
        .directory("q")
        .symlink("p/l/l", "../q")
    )
    put_layer(root, layer.file("p/l/g", b"2"))
    assert (root / "q/g").read_bytes() == b"2"


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
@pytest.mark.parametrize("whiteouts", Whiteouts)
def test_whiteouts_of_directories_above_are_refused(root, new_layer, put_layer, name, whiteouts):
    with pytest.raises(UnpackError, match="whiteout of"):
        put_layer(root, new_layer().file(name), whiteouts)
    assert root.exists()


def test_a_link_loop_names_the_entry(root, new_layer, put_layer):
    with pytest.raises(UnpackError, match=r"'loop/f': .*[Tt]oo many"):
        put_layer(root, new_layer().symlink("loop", "loop").file("loop/f"))


def test_the_root_can_only_be_a_directory(root, new_layer, put_layer):
    put_layer(root, new_layer().directory("./", mode=0o751))
    assert root.stat().st_mode & 0o7777 == 0o751
    with pytest.raises(UnpackError, match="root"):
        put_layer(root, new_layer().file("a/.."))


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UnpackError, match="nowhere"):
        unpack(io.BytesIO(b""), tmp_path / "nowhere", whiteouts=Whiteouts.APPLY)


# Replacing and deleting


def test_the_last_of_two_entries_wins(root, new_layer, put_layer):
    layer = new_layer().file("f", b"1").hard_link("h", "f").file("f", b"2")
    layer.directory("d").file("d/x").file("d", b"now a file").file("e", b"").directory("e")
    put_layer(root, layer.hard_link("h", "h"))
    assert ((root / "f").read_bytes(), (root / "h").read_bytes()) == (b"2", b"1")
    assert (root / "d").read_bytes() == b"now a file"
    assert (root / "e").is_dir()


def test_a_directory_replaces_a_link_but_not_a_directory(root, new_layer, put_layer):
    put_layer(root, new_layer().directory("d").file("d/f").symlink("l", "d"))
    put_layer(root, new_layer().directory("d", mode=0o700).directory("l"))
    assert (root / "d/f").exists()
    assert (root / "d").stat().st_mode & 0o777 == 0o700
    assert (root / "l").is_dir()
    assert not (root / "l").is_symlink()


def test_lower_files_are_replaced_not_written_through(root, new_layer, put_layer):
    put_layer(root, new_layer().file("a", b"1").hard_link("b", "a"))
    put_layer(root, new_layer().file("a", b"2"))
    assert (root / "b").read_bytes() == b"1"


def test_entries_go_through_links_of_lower_layers(root, new_layer, put_layer):
    put_layer(root, new_layer().directory("usr/lib").symlink("lib", "/usr/lib"))
    put_layer(root, new_layer().file("lib/x", b"1"))
    assert (root / "usr/lib/x").read_bytes() == b"1"
    assert (root / "lib").is_symlink()


def test_whiteouts_delete_what_is_below(root, new_layer, put_layer):
    put_layer(root, new_layer().file("f").file("d/x").file("keep").symlink("s", "d"))
    put_layer(root, new_layer().file(".wh.f").file(".wh.d").file(".wh.s").file(".wh.never"))
    assert os.listdir(root) == ["keep"]


@pytest.mark.parametrize("last", [True, False])
def test_deletions_spare_what_the_layer_brings(root, new_layer, put_layer, last):
    put_layer(root, new_layer().file("d/old").file("d/e/old").file("f", b"1").file("d/g/old"))
    layer = new_layer()
    marks = [(layer.file, "d/.wh..wh..opq"), (layer.file, ".wh.f")]
    files = [(layer.file, "d/new"), (layer.file, "d/e/new"), (layer.file, "f")]
    for add, name in files + marks if last else marks + files:
        add(name)
    put_layer(root, layer)
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    assert found == ["d", "d/e", "d/e/new", "d/new", "f"]
    assert (root / "f").read_bytes() == b""


def test_whiteouts_of_a_directory_that_comes_anew(root, new_layer, put_layer):
    put_layer(root, new_layer().file("d/old").file("d/e/old"))
    put_layer(root, new_layer().directory("d").file("d/e/new").file(".wh.d"))
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    assert found == ["d", "d/e", "d/e/new"]


def test_an_opaque_root(root, new_layer, put_layer):
    put_layer(root, new_layer().file("a").file("b/c"))
    put_layer(root, new_layer().file(".wh..wh..opq").file("d"))
    assert os.listdir(root) == ["d"]


def test_aufs_bookkeeping_is_left_out(root, new_layer, put_layer):
    put_layer(root, new_layer().directory(".wh..wh.plnk").file(".wh..wh.aufs").file("f"))
    assert os.listdir(root) == ["f"]


def test_user_attributes(root, new_layer, put_layer):
    headers = {"SCHILY.xattr.user.mime": "text/x-ü"}
    result = put_layer(root, new_layer().file("f", pax_headers=headers).directory("d", pax_headers=headers))
    if result.skipped_xattrs:
        assert result.skipped_xattrs == ("user.mime",)
    else:
        for name in ("f", "d"):
            fd = os.open(root / name, os.O_RDONLY)
            assert xattrs.get_on_fd(fd, b"user.mime") == "text/x-ü".encode()
            os.close(fd)


def test_file_flags_of_another_system_do_not_matter(root, new_layer, put_layer):
    """Those of FreeBSD itself are tested in tests/freebsd."""
    layer = new_layer().file("f", b"x", pax_headers={"SCHILY.fflags": "of-another-system"})
    assert put_layer(root, layer).skipped_xattrs == ()
    assert (root / "f").read_bytes() == b"x"


def test_the_umask_does_not_matter(root, new_layer, put_layer):
    old = os.umask(0o077)
    try:
        put_layer(root, new_layer().file("implied/f", mode=0o666).directory("d", mode=0o777))
    finally:
        os.umask(old)
    assert [(root / name).stat().st_mode & 0o777 for name in ("implied", "implied/f", "d")] == [
        0o755,
        0o666,
        0o777,
    ]
