"""Layers made by the standard library's tarfile, and what a directory holds afterwards."""
# ruff: noqa: A002, PTH115, PTH118, PTH123, PTH208, SIM115 - names as bytes, and the words of tarfile

import contextlib
import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from baustelle.unpack import Unpacked, Whiteouts, unpack


class Layer:
    """A tar archive under construction; every method returns the layer."""

    def __init__(self, format=tarfile.PAX_FORMAT):
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(
            fileobj=self._buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
        )

    def add(self, name, kind, data=b"", **fields):
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = 0o644
        info.uid, info.gid = os.getuid(), os.getgid()
        for key, value in fields.items():
            setattr(info, key, value)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def file(self, name, data=b"", **fields):
        return self.add(name, tarfile.REGTYPE, data, **fields)

    def directory(self, name, **fields):
        return self.add(name, tarfile.DIRTYPE, **{"mode": 0o755} | fields)

    def symlink(self, name, target, **fields):
        return self.add(name, tarfile.SYMTYPE, linkname=target, **fields)

    def hard_link(self, name, target, **fields):
        return self.add(name, tarfile.LNKTYPE, linkname=target, **fields)

    def bytes(self):
        self._tar.close()
        return self._buffer.getvalue()


def put(root: Path, layer, whiteouts=Whiteouts.APPLY) -> Unpacked:
    """Unpack a layer, or its bytes, into `root`."""
    data = layer.bytes() if isinstance(layer, Layer) else layer
    return unpack(io.BytesIO(data), root, whiteouts=whiteouts)


def listing(root: Path):
    """All that can be told about the files below `root`, by relative path.

    overlayfs lists a whiteout in a directory that only one layer has, but does not find it: no file then.
    """
    found = {}
    for folder, directories, files in os.walk(os.fsencode(root)):
        for name in [*directories, *files]:
            path = os.path.join(folder, name)
            try:
                info = os.lstat(path)
            except FileNotFoundError:
                continue
            content = b""
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            attributes = {}
            with contextlib.suppress(OSError, AttributeError):  # FreeBSD's Python has no listxattr
                for attribute in os.listxattr(path, follow_symlinks=False):
                    if not attribute.startswith("trusted.overlay."):
                        attributes[attribute] = os.getxattr(path, attribute, follow_symlinks=False)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(root)))] = (
                oct(info.st_mode),
                info.st_uid,
                info.st_gid,
                info.st_rdev,
                content,
                attributes,
                info.st_mtime_ns,
                1 if stat.S_ISDIR(info.st_mode) else info.st_nlink,
            )
    return found


@pytest.fixture
def new_layer():
    return Layer


@pytest.fixture
def put_layer():
    return put


@pytest.fixture
def list_tree():
    return listing


@pytest.fixture
def root(tmp_path):
    """An empty directory for a root filesystem, beside one that nothing may reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("untouched")
    path = tmp_path / "root"
    path.mkdir()
    yield path
    assert (tmp_path / "outside" / "secret").read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]
    assert os.listdir(tmp_path / "outside") == ["secret"]
