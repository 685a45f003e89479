"""The content store: blobs on disk by digest.

Layout, that of an OCI image layout (image-layout.md)::

    blobs/sha256/<hex>      complete, verified, never changed
    ingest/<random>         being written; whatever is here after a crash is rubbish

All methods block on the disk: on an event loop, call them through ``asyncio.to_thread``. They may be
called from several threads and processes at once, except `clean`. What lies where a blob should be and is no
regular file (a directory, a FIFO, a link) counts as no blob; it is never waited for, and goes when the blob is
written or deleted.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from registratur.digest import Verifier, parse_digest, split_digest
from registratur.errors import InvalidDigestError, NotFoundError


class ContentStore:
    """Immutable blobs under `root`; the folders are made when needed, for their owner only."""

    def __init__(self, root: Path) -> None:
        """Blocks. Raises OSError where the folders cannot be made."""
        self.root = root
        self._blobs = root / "blobs"
        self._ingest = root / "ingest"
        self.put_aside: list[Path] = []
        """Where those things are now that were in the place of a folder: files, for one. They are nobody's."""
        for folder in (root, self._ingest):
            self._make_folder(folder)

    def path(self, digest: str) -> Path:
        """Return where a blob is or would be, never outside `root`. Raises InvalidDigestError."""
        algorithm, encoded = split_digest(digest)
        return self._blobs / algorithm / encoded

    def has(self, digest: str) -> bool:
        """Say whether a blob is complete here."""
        try:
            return stat.S_ISREG(self.path(digest).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def size(self, digest: str) -> int:
        """Return the bytes of a blob. Raises NotFoundError."""
        fd = self._open(digest)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def read(self, digest: str) -> bytes:
        """Return a blob, hashed again: a disk that lost its tail in a crash is noticed here.

        Raises NotFoundError, DigestMismatchError, OSError.
        """
        with os.fdopen(self._open(digest), "rb") as file:
            data = file.read()
        _verify(digest, data)
        return data

    def write(self, digest: str, data: bytes) -> None:
        """Keep `data`, durably, under its digest; a blob that is there already is replaced by itself.

        Raises DigestMismatchError, OSError.
        """
        _verify(digest, data)
        target = self.path(digest)
        for folder in (self._blobs, target.parent):
            self._make_folder(folder)
        descriptor, name = tempfile.mkstemp(dir=self._ingest)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):  # a disk that has become read-only; `clean` comes by
                partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def delete(self, digest: str) -> None:
        """Forget a blob; one that is not here is fine. Raises OSError."""
        _remove(self.path(digest))

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs, in no order; files that are no blobs are passed over."""
        for path in self._blobs.glob("*/*"):
            try:
                yield parse_digest(f"{path.parent.name}:{path.name}")
            except InvalidDigestError:
                continue

    def clean(self) -> int:
        """Remove what a crash left half written; return how many files. Call it before any writer starts.

        Raises OSError.
        """
        leftovers = list(self._ingest.iterdir())
        for path in leftovers:
            _remove(path)
        return len(leftovers)

    def _open(self, digest: str) -> int:
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if self.has(digest):
                raise
            raise self._missing(digest) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._missing(digest)
        return fd

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        number = 1
        if os.path.lexists(folder):
            while os.path.lexists(aside := folder.with_name(f"{folder.name}.damaged-{number}")):
                number += 1
            folder.rename(aside)
            self.put_aside.append(aside)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sync_folder(folder.parent)

    def _missing(self, digest: str) -> NotFoundError:
        return NotFoundError(f"{digest} is not in the content store {self.root}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _verify(digest: str, data: bytes) -> None:
    verifier = Verifier(digest, len(data))
    verifier.update(data)
    verifier.finish()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (POSIX leaves that to fsync of the folder)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
