"""Nasty layers unpacked by us, by bsdtar and by umoci: the same tree, entry by entry."""
# ruff: noqa: A002 - the words of tarfile

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baustelle.layout import OCI_LAYER_GZIP, OCI_MANIFEST, ImageLayout
from baustelle.tarstream import TarStream

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(sys.platform != "linux", reason="umoci is Linux' only"),
]

BSDTAR = pytest.mark.skipif(shutil.which("bsdtar") is None, reason="needs libarchive-tools")
UMOCI = pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci")

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # vfs_cap_data: cap_net_raw+ep


def raw(name=b"f", data=b"", kind=b"0", **fields):
    """A member whose header's fields are given as bytes, by their place."""
    info = tarfile.TarInfo("x")
    info.size, info.mode = len(data), 0o644
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[:100] = name.ljust(100, b"\0")
    header[156:157] = kind
    for place, value in fields.values():
        header[place : place + len(value)] = value
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(records, kind=b"x"):
    body = b""
    for key, value in records.items():
        text = b" %s=%s\n" % (key, value)
        length = len(text) + 1
        while len(b"%d" % length) + len(text) != length:
            length += 1
        body += b"%d" % length + text
    return raw(b"header", body, kind)


END = bytes(1024)
DATA = bytes(range(256)) * 6


def modes(new):
    layer = new().directory("d", mode=0o1777, mtime=9)
    for mode in (0, 0o7777, 0o4711, 0o2755, 0o1600, 0o6000, 0o111):
        layer.file(f"d/{mode:o}", b"x", mode=mode, mtime=mode)
    return layer.bytes()


def owners(new):
    layer = new()
    for number in (0, 1, 65534, 2**21, 2**31, 2**32 - 2):
        layer.file(f"u{number}", uid=number, gid=number, mode=0o4755, mtime=1)
        layer.symlink(f"s{number}", "x", uid=number, gid=5, mtime=1)
    return layer.bytes()


def hard_links(new):
    layer = new().file("a", b"x", mode=0o4755, uid=3, mtime=1).symlink("s", "a", mtime=2)
    layer.add("p", tarfile.FIFOTYPE, mtime=3).directory("d", mtime=4)
    layer.hard_link("b", "a").hard_link("d/c", "b").hard_link("t", "s").hard_link("q", "p")
    return layer.directory("d", mtime=4).bytes()


def replaced_link_target(new):
    return new().file("a", b"1", mtime=1).hard_link("b", "a").file("a", b"2", mtime=2).bytes()


def symlinks(new):
    layer = new().directory("d", mtime=1)
    for number, target in enumerate(
        ("/", "..", "../../..", "nowhere", "d/", "x" * 4000, ".", "a b", "-", "\\")
    ):
        layer.symlink(f"s{number}", target, mtime=5)
    return layer.bytes()


def devices(new):
    layer = new().add("c", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, mtime=1)
    layer.add("b", tarfile.BLKTYPE, devmajor=259, devminor=70000, mode=0o640, uid=4, mtime=1)
    return layer.add("p", tarfile.FIFOTYPE, mode=0o7622, mtime=1).hard_link("c2", "c").bytes()


def attributes(new):
    records = {
        b"SCHILY.xattr.user.plain": b"value",
        b"SCHILY.xattr.user.binary": bytes(range(256)),
        b"SCHILY.xattr.user.empty": b"",
        b"SCHILY.xattr.user.e": b"a=b",
        b"SCHILY.xattr.trusted.x": b"\n1",
        b"SCHILY.xattr.security.capability": CAPABILITY,
    }
    directory = {b"SCHILY.xattr.user.d": b"v", b"path": b"d/"}
    return pax(records) + raw(b"f", b"x") + pax(directory) + raw(b"d/", kind=b"5") + END


def names(format):
    def make(new):
        layer = new(format)
        for name in ("n" * 255, "/".join(["p" * 80] * 5), "a" * 100, "b" * 101, "l/" * 60 + "x"):
            above = name.rpartition("/")[0]
            parts = above.split("/") if above else []
            for depth in range(1, len(parts) + 1):
                layer.directory("/".join(parts[:depth]), mtime=1)
        for name in ("n" * 255, "/".join(["p" * 80] * 5), "a" * 100, "b" * 101, "l/" * 60 + "x"):
            layer.file(name, b"x", mtime=2)
        parts = ["p" * 80] * 4 + ["l"]
        for depth in range(4, 0, -1):
            layer.directory("/".join(parts[:depth]), mtime=1)
        for depth in range(60, 0, -1):
            layer.directory("/".join(["l"] * depth), mtime=1)
        return layer.bytes()

    return make


def odd_names(new):
    layer = new()
    for name in (
        b"latin-\xe9",
        b"new\nline",
        b"-dash",
        b" space ",
        b"back\\slash",
        b"*?[",
        b"\x01\x7f",
        b"\xff\xfe",
    ):
        layer.file(os.fsdecode(name), name, mtime=1)
    return layer.bytes()


def times(new):
    layer = new()
    for number, told in enumerate(
        ("0", "1.5", "-1", "1700000000.123456789", "4294967296", "8589934592.000000001")
    ):
        layer.file(f"t{number}", pax_headers={"mtime": told}).directory(
            f"d{number}", pax_headers={"mtime": told}
        )
        layer.symlink(f"s{number}", "x", pax_headers={"mtime": told})
    return layer.bytes()


def in_turn(new):
    layer = new().file("f", b"1", mtime=1).file("f", b"22", mode=0o600, mtime=2).symlink("s", "f", mtime=1)
    layer.file("s", b"now a file", mtime=3).directory("d", mtime=4).symlink("d2", "d", mtime=5)
    return layer.file("e", b"", mtime=1).directory("e", mtime=6).symlink("f2", "f", mtime=7).bytes()


def closed_directories(new):
    layer = (
        new().directory("a", mode=0, mtime=1).file("a/f", b"x", mtime=2).directory("b", mode=0o500, mtime=3)
    )
    return layer.directory("b/c", mode=0o111, mtime=4).file("b/c/f", b"y", mtime=5).bytes()


def late_directories(new):
    layer = new().directory("d", mode=0o700, mtime=1).file("d/f", b"x", mtime=2)
    return layer.directory("d", mode=0o1750, uid=7, mtime=8).bytes()


def dots(new):
    layer = new().directory("./d", mtime=1).file("./d//f", b"1", mtime=2).file("././d/./g", b"2", mtime=3)
    return layer.hard_link("h", "./d/f").directory("d/", mtime=1).bytes()


def sparse_one(new):
    head = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"f"}
    text = b"3\n0\n512\n4096\n1024\n10000\n0\n".ljust(512, b"\0")
    return pax(head | {b"GNU.sparse.realsize": b"10000"}) + raw(b"GNUSparseFile.0/f", text + DATA) + END


def sparse_zero_one(new):
    head = {b"GNU.sparse.size": b"10000", b"GNU.sparse.numblocks": b"3", b"GNU.sparse.name": b"f"}
    return pax(head | {b"GNU.sparse.map": b"0,512,4096,1024,10000,0"}) + raw(b"GNUSparseFile.0/f", DATA) + END


def sparse_old(new):
    def numbers(*values):
        return b"".join(b"%011o\0" % value for value in values)

    fields = {
        "magic": (257, b"ustar  \0"),
        "prefix": (345, bytes(41)),
        "map": (386, numbers(0, 512, 4096, 256, 4352, 256, 4608, 256)),
        "more": (482, b"\1"),
        "real": (483, numbers(10000)),
    }
    header = raw(b"f", DATA, b"S", **fields)
    return header[:512] + numbers(4864, 256, 10000, 0).ljust(512, b"\0") + header[512:] + END


def large(new):
    return (
        new()
        .file("f", bytes(3_000_000), mtime=1)
        .file("g", DATA * 700, mtime=2)
        .file("e", b"", mtime=3)
        .bytes()
    )


def seventh(new):
    return raw(b"old", b"1", b"\0") + raw(b"contiguous", b"22", b"7") + raw(b"d/", b"", b"5") + END


def prefixes(new):
    return raw(b"f", b"x", prefix=(345, b"p/q")) + raw(b"f" * 100, b"y", prefix=(345, b"p")) + END


def base_256(new):
    number = (0x80 << 56 | 70000).to_bytes(8, "big")
    seconds = (0x80 << 88 | 2**33 + 5).to_bytes(12, "big")
    return raw(b"f", b"x", uid=(108, number), mtime=(136, seconds), magic=(257, b"ustar  \0")) + END


def padded_numbers(new):
    return (
        raw(b"f", b"x", mode=(100, b"   644 \0"), uid=(108, b"     7\0\0"), mtime=(136, b"        12 \0"))
        + END
    )


def global_records(new):
    comment = pax({b"comment": b"c" * 40, b"mtime": b"77"}, b"g")
    return comment + raw(b"f", b"1") + pax({b"mtime": b"5"}) + raw(b"g", b"2") + raw(b"h", b"3") + END


def overruled(new):
    records = {b"path": b"real", b"size": b"5", b"uid": b"70000", b"gid": b"3000000", b"mtime": b"9.25"}
    return pax(records) + raw(b"not", b"12345", size=(124, b"00000000000\0")) + END


def twice(new):
    return pax({b"path": b"first", b"mtime": b"3"}) + pax({b"path": b"second"}) + raw(b"f", b"x") + END


def slashes(new):
    """Names of directories are told by a slash in the oldest format."""
    return raw(b"d/", b"", b"0", magic=(257, bytes(8))) + raw(b"d/f", b"x") + raw(b"d/", b"", b"5") + END


def fifo_in_place(new):
    layer = new().file("x", b"1", mtime=1).add("x", tarfile.FIFOTYPE, mtime=2)
    return layer.add("y", tarfile.FIFOTYPE, mtime=1).symlink("y", "x", mtime=3).file("z", mtime=1).bytes()


NASTY = {
    "modes": modes,
    "owners": owners,
    "hard links": hard_links,
    "a link's target is replaced": replaced_link_target,
    "symlinks": symlinks,
    "devices": devices,
    "attributes": attributes,
    "long names, pax": names(tarfile.PAX_FORMAT),
    "long names, GNU": names(tarfile.GNU_FORMAT),
    "odd names": odd_names,
    "times": times,
    "one after the other": in_turn,
    "closed directories": closed_directories,
    "late directories": late_directories,
    "dots": dots,
    "sparse 1.0": sparse_one,
    "sparse 0.1": sparse_zero_one,
    "sparse, old": sparse_old,
    "large": large,
    "old types": seventh,
    "prefixes": prefixes,
    "base 256": base_256,
    "padded numbers": padded_numbers,
    "global records": global_records,
    "overruled": overruled,
    "two headers": twice,
    "slashes": slashes,
    "FIFOs in place": fifo_in_place,
}

BSDTAR_DIFFERS = {
    "late directories": "it keeps the time of the first of two entries",
    "global records": "it passes over them",
    "two headers": "it warns",
}

UMOCI_DIFFERS = {
    "global records": "Go passes over them",
    "two headers": "Go takes the last header alone",
    "sparse, old": "umoci knows no such type",
    "old types": "likewise",
    "attributes": "umoci leaves out trusted ones",
    "slashes": "Go knows directories of the oldest format by their type only",
}


def acl(new):
    access = b"user::rwx,user:lisa:r-x:502,group::r-x,group:7:rw-,mask::rwx,other::r--"
    default = b"user::rwx,group::r-x,other::---"
    special = {b"SCHILY.acl.access": access, b"SCHILY.acl.default": default, b"path": b"d/", b"mtime": b"4"}
    return pax({b"SCHILY.acl.access": access}) + raw(b"f", b"x") + pax(special) + raw(b"d/", b"", b"5") + END


def libarchive(new):
    records = {b"LIBARCHIVE.xattr.user.a%3Db": b"AAEC/w", b"LIBARCHIVE.xattr.user.plain": b"dmFsdWU"}
    return pax(records) + raw(b"f", b"x") + END


def told(tree, named=None):
    """Directories that no entry names have the times of the moment."""
    if named is None:
        return tree
    return {
        path: value if not value[0].startswith("0o4") or path in named else (*value[:6], None, value[7])
        for path, value in tree.items()
    }


def named(layers):
    found = set()
    for layer in layers:
        found |= {os.path.normpath(name) for name in entry_names(layer)}
    return found


def entry_names(layer):
    return [os.fsdecode(entry.name) for entry in TarStream(iter([layer]))]


def by_bsdtar(layer, target):
    target.mkdir()
    command = [
        "bsdtar",
        "-x",
        "-p",
        "-P",
        "--numeric-owner",
        "--xattrs",
        "--acls",
        "--fflags",
        "-f",
        "-",
        "-C",
        target,
    ]
    done = subprocess.run(command, input=layer, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def by_umoci(layers, base):
    layout = ImageLayout(base / "layout")
    blobs = [layout.write(gzip.compress(data)) for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = layout.write_document(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
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
    command = ["umoci", "raw", "unpack", "--image", f"{layout.root}:x:1", base / "umoci"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return base / "umoci"


@BSDTAR
@pytest.mark.parametrize(
    "name", [name for name in [*NASTY, "acl", "libarchive"] if name not in BSDTAR_DIFFERS]
)
def test_bsdtar_agrees(tmp_path, new_layer, put_layer, list_tree, name):
    layer = {**NASTY, "acl": acl, "libarchive": libarchive}[name](new_layer)
    (tmp_path / "ours").mkdir()
    assert put_layer(tmp_path / "ours", layer).skipped_xattrs == ()
    ours, theirs = (list_tree(path) for path in (tmp_path / "ours", by_bsdtar(layer, tmp_path / "theirs")))
    assert ours
    assert told(ours, named([layer])) == told(theirs, named([layer]))


@UMOCI
@pytest.mark.parametrize("name", [name for name in NASTY if name not in UMOCI_DIFFERS])
def test_umoci_agrees(tmp_path, new_layer, put_layer, list_tree, name):
    layer = NASTY[name](new_layer)
    (tmp_path / "ours").mkdir()
    put_layer(tmp_path / "ours", layer)
    ours, theirs = (list_tree(path) for path in (tmp_path / "ours", by_umoci([layer], tmp_path)))
    assert told(ours, named([layer])) == told(theirs, named([layer]))


PLACES = ["d", "d/e", "k"]
MODES = st.lists(st.integers(0, 0o7777), min_size=3, max_size=3)
NAMES = ["f", "d/f", "d/e/f", "k/l", "g"]
ENTRIES = st.one_of(
    st.tuples(st.just("file"), st.sampled_from(NAMES), st.integers(0, 0o7777), st.integers(0, 2**33)),
    st.tuples(st.just("symlink"), st.sampled_from(NAMES), st.just(0o777), st.integers(0, 2**33)),
    st.tuples(st.just("fifo"), st.sampled_from(NAMES), st.integers(0, 0o7777), st.integers(0, 2**33)),
    st.tuples(st.just("hard_link"), st.sampled_from(NAMES), st.just(0o644), st.integers(0, 2**33)),
)


@BSDTAR
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ENTRIES, max_size=12), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), MODES)
def test_bsdtar_agrees_on_made_ones(
    tmp_path_factory, new_layer, put_layer, list_tree, entries, format, modes
):
    layer = new_layer(format)
    for place, mode in zip(PLACES, modes, strict=True):  # first: bsdtar keeps the time of what it had to make
        layer.directory(place, mode=mode, mtime=mode)
    here = []
    for number, (kind, name, mode, mtime) in enumerate(entries):
        details = {"mode": mode, "mtime": mtime, "uid": number, "gid": number + 1}
        if kind == "symlink":
            layer.symlink(name, f"to{number}", **details)
        elif kind == "fifo":
            layer.add(name, tarfile.FIFOTYPE, **details)
        elif kind == "hard_link":
            if not here or here[number % len(here)] == name:
                continue
            layer.hard_link(name, here[number % len(here)])
        else:
            getattr(layer, kind)(name, **details)
        if name not in here:
            here.append(name)
    data = layer.bytes()
    base = tmp_path_factory.mktemp("case")
    (base / "ours").mkdir()
    put_layer(base / "ours", data)
    ours, theirs = list_tree(base / "ours"), list_tree(by_bsdtar(data, base / "theirs"))
    assert told(ours, named([data])) == told(theirs, named([data]))
