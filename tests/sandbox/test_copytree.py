"""Copies and removals of trees, on any system; what only FreeBSD has is in tests/freebsd."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from baustelle import fileflags, removal, xattrs
from baustelle.descent import Descent
from baustelle.removal import remove_tree
from cri.sandbox import copytree
from cri.sandbox.copytree import copy_tree, disk_usage
from cri.sandbox.durable import sync_tree


@pytest.fixture
def source(tmp_path) -> Path:
    source = tmp_path / "a"
    (source / "d/e").mkdir(parents=True)
    (source / "d/file").write_bytes(b"x" * 100_000)
    (source / "d/file").chmod(0o4750)
    (source / "hard").hardlink_to(source / "d/file")
    (source / "link").symlink_to("/nowhere")
    os.mkfifo(source / "fifo", 0o640)
    os.utime(source / "d/file", ns=(1000, 2000))
    os.utime(source / "link", ns=(3000, 4000), follow_symlinks=False)
    os.utime(source / "d", ns=(5000, 6000))
    return source


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "b").mkdir()
    return tmp_path / "b"


def test_copies_everything(source, target):
    copy_tree(str(source), str(target))
    assert (target / "d/file").read_bytes() == b"x" * 100_000
    assert (target / "d/file").stat().st_mode & 0o7777 == 0o4750
    assert (target / "d/file").stat().st_mtime_ns == 2000
    assert (target / "d").stat().st_mtime_ns == 6000
    assert (target / "link").readlink() == Path("/nowhere")
    assert (target / "link").lstat().st_mtime_ns == 4000
    assert (target / "fifo").is_fifo()
    assert (target / "fifo").stat().st_mode & 0o7777 == 0o640


def test_hard_links_stay_inside_of_the_copy(source, target):
    copy_tree(str(source), str(target))
    assert (target / "hard").samefile(target / "d/file")
    assert (target / "hard").stat().st_nlink == 2
    assert not (target / "hard").samefile(source / "hard")


def test_extended_attributes(source, target):
    for path in (source / "d/file", source / "d"):
        fd = os.open(path, os.O_RDONLY)
        try:
            xattrs.set_on_fd(fd, b"user.x", b"some\0value")
            xattrs.set_on_fd(fd, b"user.empty", b"")
        except OSError as error:
            if error.errno in xattrs.NOT_STORABLE:
                pytest.skip("this file system keeps no extended attributes")
            raise
        finally:
            os.close(fd)
    copy_tree(str(source), str(target))
    for path in (target / "d/file", target / "d"):
        fd = os.open(path, os.O_RDONLY)
        names = {name: xattrs.get_on_fd(fd, name) for name in xattrs.names_on_fd(fd)}
        os.close(fd)
        assert {name: names.get(name) for name in (b"user.x", b"user.empty")} == {
            b"user.x": b"some\0value",
            b"user.empty": b"",
        }


@pytest.mark.parametrize("fallback", [False, True])
def test_holes_stay_holes(tmp_path, target, monkeypatch, fallback):
    source = tmp_path / "a"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"middle" * 10_000)
        file.truncate(64 << 20)
    (source / "hole").touch()
    os.truncate(source / "hole", 5_000_000)
    if fallback:

        def refuse(*_):
            raise OSError(errno.EXDEV, "")

        monkeypatch.setattr(copytree.os, "copy_file_range", refuse)
    copy_tree(str(source), str(target))
    content = (target / "sparse").read_bytes()
    assert content[8 << 20 :].startswith(b"middle" * 10_000)
    assert content.count(0) == len(content) - 60_000
    assert len(content) == 64 << 20
    assert (target / "hole").stat().st_size == 5_000_000
    if (source / "sparse").stat().st_blocks * 512 < 1 << 20:  # else this file system has no holes
        assert disk_usage(str(target)).bytes < 1 << 20


def test_sockets_are_left_out(source, target):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        home = Path.cwd()
        os.chdir(source)  # the path of a socket is short
        try:
            server.bind("socket")
        finally:
            os.chdir(home)
    copy_tree(str(source), str(target))
    assert not (target / "socket").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_devices_and_owners(source, target):
    os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    os.chown(source / "d/file", 12, 34)
    (source / "d/file").chmod(0o4755)
    os.lchown(source / "link", 56, 78)
    copy_tree(str(source), str(target))
    found = (target / "null").stat()
    assert (found.st_rdev, found.st_mode & 0o7777) == (
        os.makedev(1, 3),
        (source / "null").stat().st_mode & 0o7777,
    )
    found = (target / "d/file").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12, 34, 0o4755)
    assert ((target / "link").lstat().st_uid, (target / "link").lstat().st_gid) == (56, 78)


def test_usage(source):
    used = disk_usage(str(source))
    assert used.inodes == 6
    once = (source / "d/file").stat().st_blocks * 512  # what ZFS has not yet written takes nothing
    assert used.bytes >= once
    if once >= 100_000:
        assert used.bytes < 2 * once
    assert disk_usage(str(source / "gone")).inodes == 0


def test_removes_what_is_very_deep(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    removal.remove_tree(top)
    removal.remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_removes_beneath_a_descriptor_and_follows_nothing(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "top/d").mkdir(parents=True)
    (tmp_path / "top/d/link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to("kept")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        removal.remove_tree(b"top", dir_fd=fd)
        with pytest.raises(OSError, match="link"):
            removal.remove_tree("link", dir_fd=fd)
    finally:
        os.close(fd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "link"]
    assert (tmp_path / "kept/file").exists()


def test_what_must_not_be_removed_says_so():
    nobody = 65534
    with tempfile.TemporaryDirectory() as name:
        top = Path(name, "top")
        top.mkdir()
        (top / "file").touch()
        Path(name).chmod(0o755)
        top.chmod(0o555)
        me = os.geteuid()
        try:
            if me == 0:
                os.seteuid(nobody)  # root may remove it
            with pytest.raises(PermissionError):
                removal.remove_tree(top)
        finally:
            os.seteuid(me)
        assert (top / "file").exists()
        top.chmod(0o755)


@pytest.mark.skipif(hasattr(os, "chflags"), reason="this system has flags")
def test_without_flags(tmp_path):
    (tmp_path / "file").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert fileflags.of(os.fstat(fd)) == fileflags.unprotect(fd) == fileflags.parse(b"schg") == 0
        assert not fileflags.unprotect_name(fd, "file")
        for refused in (lambda: fileflags.set_on_fd(fd, 1), lambda: fileflags.set_on_name(fd, "file", 1)):
            with pytest.raises(OSError) as error:
                refused()
            assert error.value.errno in fileflags.NOT_STORABLE
    finally:
        os.close(fd)


def test_deeper_than_a_path_is_long(tmp_path):
    """2,000 directories, with a hard link between the bottom and the top; and an end half-way."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with Descent(os.open(source, os.O_RDONLY)) as place:
        for _ in range(2000):
            os.mkdir("ddd", dir_fd=place.fd)
            place.down("ddd")
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=place.fd))
        os.link("f", "g", src_dir_fd=place.fd, dst_dir_fd=place.fd)
    try:
        copy_tree(str(source), str(target))
        assert disk_usage(str(target)).inodes == disk_usage(str(source)).inodes == 2002
        sync_tree(target)
        remove_tree(target)
        target.mkdir()
        with pytest.raises(InterruptedError):
            copy_tree(str(source), str(target), check=_interrupt)
    finally:
        remove_tree(source)
        remove_tree(target)


def _interrupt():
    raise InterruptedError
