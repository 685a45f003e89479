"""What files have on FreeBSD and nowhere else, copied, unpacked and removed: flags, ACLs, attributes of both name spaces."""

import contextlib
import io
import os
import stat
import subprocess
import tarfile

import pytest

from baustelle import fileflags, removal, xattrs
from baustelle.unpack import Whiteouts, unpack
from cri.sandbox.copytree import copy_tree

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SCHG, SUNLNK, NODUMP = stat.SF_IMMUTABLE, stat.SF_NOUNLINK, stat.UF_NODUMP


@pytest.fixture
def tree(tmp_path):
    """A directory that goes even if the test leaves flags behind."""
    (tmp_path / "tree").mkdir()
    yield tmp_path / "tree"
    for name in ("tree", "copy"):
        removal.remove_tree(tmp_path / name)


@pytest.fixture
def copy(tree):
    (tree.parent / "copy").mkdir()
    return tree.parent / "copy"


def flags(path) -> int:
    """Without `uarch`, which file systems set as they like."""
    return os.lstat(path).st_flags & ~0x800


def protect(path, value) -> None:
    os.chflags(path, value, follow_symlinks=False)


def test_flags_are_copied_last(tree, copy):
    (tree / "d").mkdir()
    (tree / "d/file").write_text("x")
    (tree / "z").hardlink_to(tree / "d/file")
    (tree / "plain").touch()
    (tree / "link").symlink_to("nowhere")
    protect(tree / "d/file", SCHG)
    protect(tree / "plain", NODUMP)
    protect(tree / "link", SUNLNK)
    protect(tree / "d", SCHG | NODUMP)
    protect(tree, SUNLNK)
    copy_tree(str(tree), str(copy))
    assert (copy / "z").samefile(copy / "d/file")
    found = {name: flags(copy / name) for name in (".", "d", "d/file", "z", "plain", "link")}
    assert found == {
        ".": SUNLNK, "d": SCHG | NODUMP, "d/file": SCHG, "z": SCHG, "plain": NODUMP, "link": SUNLNK,
    }  # fmt: skip


def test_removal_goes_against_flags(tree):
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/b/file").touch()
    (tree / "a/link").symlink_to("b")
    for name in ("a/b/file", "a/link", "a/b/c", "a/b", "a", "."):
        protect(tree / name, SCHG | SUNLNK)
    removal.remove_tree(tree)
    assert not tree.exists()


def test_names_of_flags():
    assert fileflags.parse(b"schg,nodump") == SCHG | NODUMP
    assert fileflags.parse(b"schg,of-another-system") == SCHG
    assert fileflags.parse(b"") == fileflags.parse(b"none") == 0


def test_attributes_of_both_name_spaces(tree, copy):
    (tree / "file").touch()
    for path in (tree, tree / "file"):
        with opened(path) as fd:
            xattrs.set_on_fd(fd, b"user.mime", b"text\0plain")
            xattrs.set_on_fd(fd, b"system.label", b"")
            with pytest.raises(OSError) as error:
                xattrs.set_on_fd(fd, b"security.capability", b"x")
            assert error.value.errno in xattrs.NOT_STORABLE
    copy_tree(str(tree), str(copy))
    for path in (copy, copy / "file"):
        with opened(path) as fd:
            assert sorted(xattrs.names_on_fd(fd)) == [b"system.label", b"user.mime"]
            assert xattrs.get_on_fd(fd, b"user.mime") == b"text\0plain"
            assert xattrs.get_on_fd(fd, b"system.label") == b""


def test_attributes_of_what_cannot_be_opened(tree):
    os.mkfifo(tree / "fifo")
    (tree / "link").symlink_to("fifo")
    with opened(tree) as fd:
        try:
            xattrs.set_on_name(fd, b"fifo", b"user.x", b"of the fifo")
            xattrs.set_on_name(fd, b"link", b"user.x", b"of the link")
        except OSError as error:
            if error.errno in xattrs.NOT_STORABLE:  # ZFS
                pytest.skip("this file system keeps them for files and directories only")
            raise
        for name, value in ((b"fifo", b"of the fifo"), (b"link", b"of the link")):
            below = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
            assert xattrs.get_on_fd(below, b"user.x") == value
            os.close(below)


def test_access_control_lists(tree, copy):
    (tree / "d").mkdir()
    (tree / "file").touch()
    (tree / "plain").touch()
    nfs4 = os.pathconf(tree, 64) > 0
    if not nfs4 and os.pathconf(tree, 59) <= 0:
        pytest.skip("this file system keeps no access control lists")
    entry = "user:12:rw-p----------:-------:allow" if nfs4 else "user:12:rw-"
    subprocess.run(["setfacl", "-m", entry, str(tree / "file")], check=True)
    if nfs4:
        subprocess.run(["setfacl", "-a0", "user:12:rwxp:fd:allow", str(tree / "d")], check=True)
    else:
        for default in ("u::rwx,g::rx,o::rx", "u:12:rwx"):
            subprocess.run(["setfacl", "-dm", default, str(tree / "d")], check=True)
    copy_tree(str(tree), str(copy))
    for name in ("d", "file", "plain"):
        for options in ((), ("-d",)) if name == "d" and not nfs4 else ((),):
            assert acl(copy / name, *options) == acl(tree / name, *options)


def acl(path, *options) -> str:
    text = subprocess.run(
        ["getfacl", "-n", *options, str(path)], check=True, capture_output=True, text=True
    ).stdout
    return text.partition("\n")[2]


# Layers


def layer(*entries) -> bytes:
    """Entries as (name, what, flags): what is the content, `/` for a directory, `->x` for a hard link to x."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what, text in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if text:
                info.pax_headers = {"SCHILY.fflags": text}
            if what == "/":
                info.type = tarfile.DIRTYPE
            elif what.startswith("->"):
                info.type, info.linkname = tarfile.LNKTYPE, what[2:]
            else:
                info.size = len(what)
            tar.addfile(info, io.BytesIO(what.encode() if info.isreg() else b""))
    return buffer.getvalue()


def put(root, *entries):
    return unpack(io.BytesIO(layer(*entries)), root, whiteouts=Whiteouts.APPLY)


BASE = (
    ("empty", "/", "schg"),
    ("lib", "/", ""),
    ("lib/libc.so", "libc", "schg,uarch"),
    ("lib/libc.so.7", "->lib/libc.so", "schg,uarch"),
    ("keep", "/", "sunlnk"),
    ("keep/file", "x", "nodump"),
)


def test_a_layer_sets_flags(tree):
    assert put(tree, *BASE).skipped_xattrs == ()
    names = ("empty", "lib", "lib/libc.so", "lib/libc.so.7", "keep", "keep/file")
    assert [flags(tree / name) for name in names] == [SCHG, 0, SCHG, SCHG, SUNLNK, NODUMP]
    assert (tree / "lib/libc.so").samefile(tree / "lib/libc.so.7")


def test_layers_above_change_what_is_protected(tree):
    put(tree, *BASE)
    put(
        tree,
        ("empty/file", "new", ""),
        ("lib/libc.so", "newer", "schg"),
        ("lib/again", "->lib/libc.so.7", ""),
        (".wh.keep", "", ""),
    )
    assert (tree / "empty/file").read_text() == "new"
    assert flags(tree / "empty") == SCHG
    assert (tree / "lib/libc.so").read_text() == "newer"
    assert (tree / "lib/libc.so.7").read_text() == "libc"
    assert (tree / "lib/again").samefile(tree / "lib/libc.so.7")
    assert [flags(tree / "lib" / name) for name in ("libc.so", "libc.so.7")] == [SCHG, SCHG]
    assert not (tree / "keep").exists()


def test_a_layer_can_take_flags_away(tree):
    put(tree, *BASE)
    put(tree, ("empty", "/", ""), ("empty/file", "x", ""))
    assert flags(tree / "empty") == 0
    put(tree, ("lib/.wh..wh..opq", "", ""))
    assert list((tree / "lib").iterdir()) == []


@contextlib.contextmanager
def opened(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
