"""The content store: blobs on disk by digest.

Layout, that of an OCI image layout (image-layout.md)::

    blobs/sha256/<hex>      complete, verified, never changed
    ingest/<random>         being written; whatever is here after a crash is rubbish

All methods block on the disk: on an event loop, call them through ``asyncio.to_thread``. They may be
called from several threads and processes at once, except `clean`.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from registratur.digest import Verifier, parse_digest, split_digest
from registratur.errors import InvalidDigestError, NotFoundError


class ContentStore:
    """Immutable blobs under `root`; the folders are made when needed, for their owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._ingest = root / "ingest"
        self._ingest.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        """Return where a blob is or would be, never outside `root`. Raises InvalidDigestError."""
        algorithm, encoded = split_digest(digest)
        return self._blobs / algorithm / encoded

    def has(self, digest: str) -> bool:
        """Say whether a blob is complete here."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Return the bytes of a blob. Raises NotFoundError."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise self._missing(digest) from error

    def read(self, digest: str) -> bytes:
        """Return a blob, hashed again: a disk that lost its tail in a crash is noticed here.

        Raises NotFoundError, DigestMismatchError.
        """
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise self._missing(digest) from error
        _verify(digest, data)
        return data

    def write(self, digest: str, data: bytes) -> None:
        """Keep `data`, durably, under its digest; a blob that is there already is replaced by itself.

        Raises DigestMismatchError, OSError.
        """
        _verify(digest, data)
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=self._ingest)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def delete(self, digest: str) -> None:
        """Forget a blob; one that is not here is fine."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs, in no order; files that are no blobs are passed over."""
        for path in self._blobs.glob("*/*"):
            try:
                yield parse_digest(f"{path.parent.name}:{path.name}")
            except InvalidDigestError:
                continue

    def clean(self) -> int:
        """Remove what a crash left half written; return how many files. Call it before any writer starts."""
        leftovers = list(self._ingest.iterdir())
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def _missing(self, digest: str) -> NotFoundError:
        return NotFoundError(f"{digest} is not in the content store {self.root}")


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
