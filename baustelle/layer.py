"""One layer of an image, written so that the same files give the same bytes."""

import hashlib
import os
import stat
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from baustelle.errors import BuildError
from baustelle.layout import Blob, BlobWriter, ImageLayout


@dataclass(frozen=True, slots=True)
class Item:
    """A file to be put into a layer."""

    source: Path | None
    """Where its content and kind come from; None for a directory made for the image."""
    mode: int
    uid: int
    gid: int


def write_layer(layout: ImageLayout, items: dict[str, Item], mtime: int) -> tuple[Blob, str]:
    """Write a gzip layer of `items` by path and return its blob and diff_id.

    Entries are sorted and all have the time `mtime`, in seconds; hard links among them stay hard links; extended
    attributes are not taken along.
    Raises BuildError for files that no layer can hold, such as sockets.
    """
    with layout.writer() as blob:
        out = _Gzip(blob, layout.algorithm)
        # The stream mode of tarfile only ever writes.
        with tarfile.open(
            fileobj=cast("IO[bytes]", out), mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20
        ) as archive:
            written: dict[object, str] = {}
            for path in sorted(items):
                _write_item(archive, path, items[path], mtime, written)
        out.finish()
    return blob.blob, out.diff_id


def _write_item(
    archive: tarfile.TarFile, path: str, item: Item, mtime: int, written: dict[object, str]
) -> None:
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid, info.mtime = item.mode, item.uid, item.gid, mtime
    if item.source is None:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
        return
    found = item.source.lstat()
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, link_target(item.source)
        archive.addfile(info)
    elif stat.S_ISREG(found.st_mode):
        # The same file with another mode or owner must be a file of its own: links share both.
        identity = (found.st_dev, found.st_ino, item.mode, item.uid, item.gid)
        if found.st_nlink > 1 and (first := written.setdefault(identity, path)) != path:
            info.type, info.linkname = tarfile.LNKTYPE, first
            archive.addfile(info)
            return
        with item.source.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            archive.addfile(info, file)
    else:
        raise BuildError(f"{item.source}: only files, directories and links can be copied into an image")


def link_target(link: Path) -> str:
    """The target of a link, exactly as it is written."""
    return os.readlink(link)  # noqa: PTH115 - a Path would tidy it


class _Gzip:
    """Gzip without time and name, and the digest of what goes in."""

    def __init__(self, out: BlobWriter, algorithm: str) -> None:
        self._out = out
        self._deflate = zlib.compressobj(6, wbits=31)
        self._hash = hashlib.new(algorithm)

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._out.write(self._deflate.compress(data))
        return len(data)

    def finish(self) -> None:
        self._out.write(self._deflate.flush())

    @property
    def diff_id(self) -> str:
        return f"{self._hash.name}:{self._hash.hexdigest()}"
