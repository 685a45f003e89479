"""Where a push takes its blobs from."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

from registratur.digest import split_digest
from registratur.errors import NotFoundError

_PIECE = 1024 * 1024  # bytes that are read, and held, at a time


class BlobSource(Protocol):
    """Blobs by digest. Nobody trusts it: what it gives is hashed on its way out."""

    def has(self, digest: str) -> bool:
        """Say whether there is such a blob; may block on the disk."""
        ...

    def stream(self, digest: str, start: int) -> AsyncGenerator[bytes, None]:
        """Yield a blob from byte `start` on, in pieces of any length. Is closed when nobody wants more."""
        ...


class LayoutSource:
    """The blobs of an OCI image layout (image-spec image-layout.md), or of a content store, below `root`."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"

    def has(self, digest: str) -> bool:
        """Say whether there is such a blob. Blocks. Raises InvalidDigestError."""
        try:
            return stat.S_ISREG(self._path(digest).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    async def stream(self, digest: str, start: int) -> AsyncGenerator[bytes, None]:
        """Yield a blob from byte `start` on. Raises NotFoundError, InvalidDigestError, OSError."""
        while piece := await asyncio.to_thread(self._read, digest, start):
            yield piece
            start += len(piece)

    def _path(self, digest: str) -> Path:
        algorithm, encoded = split_digest(digest)
        return self._blobs / algorithm / encoded

    def _read(self, digest: str, start: int) -> bytes:
        """Return a piece. The file is opened for each: a thread that was left alone has nothing to leak."""
        try:
            # O_NONBLOCK: nobody waits for a FIFO that lies where a blob should.
            descriptor = os.open(self._path(digest), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(digest) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._missing(digest)
            return os.pread(descriptor, _PIECE, start)
        finally:
            os.close(descriptor)

    def _missing(self, digest: str) -> NotFoundError:
        return NotFoundError(f"{digest} is not among the blobs below {self._blobs}")
