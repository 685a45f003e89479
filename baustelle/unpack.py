"""A layer's tar stream into a directory, read once: decompressed, hashed and extracted on the way."""

import asyncio
import hashlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baustelle.bounds import Bounds, Budget, Window
from baustelle.decompress import Source, plain_chunks
from baustelle.errors import BoundExceededError, CorruptLayerError, UnpackError
from baustelle.extract import Extractor, Whiteouts
from baustelle.layertree import LayerTree
from baustelle.starting import STARTER
from baustelle.tarstream import TarStream

__all__ = [
    "BoundExceededError",
    "Bounds",
    "Budget",
    "CorruptLayerError",
    "UnpackError",
    "Unpacked",
    "Whiteouts",
    "unpack",
    "unpack_stream",
]

_QUEUED_CHUNKS = 16


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of a layer."""

    diff_id: str
    """Digest of the plain tar archive, `algorithm:hex`, as the image config's `rootfs.diff_ids` lists it."""
    size: int
    """Bytes of data in regular files, holes not counted."""
    entries: int
    skipped_xattrs: tuple[str, ...] = ()
    """Extended attributes that the file system cannot keep, by name; SCHILY.fflags stands for file flags, SCHILY.acl.* for
    access control lists."""
    tree: LayerTree | None = field(default=None, repr=False, compare=False)
    """What `baustelle.restack` must know of a layer that was unpacked for overlayfs."""


def unpack(
    stream: Source,
    root: Path,
    *,
    whiteouts: Whiteouts,
    algorithm: str = "sha256",
    check: Callable[[], None] = lambda: None,
    budget: Budget | None = None,
) -> Unpacked:
    """Unpack the layer in `stream` (gzip, zstd or plain tar, read to its end) into the directory `root`.

    `root` must exist. It holds the layers below for `Whiteouts.APPLY`, nothing for the others.
    Blocks; for an event loop there is `unpack_stream`. No entry ends outside of `root`, whatever it is called
    and whatever links are there. File flags (SCHILY.fflags) are set on FreeBSD, by root: remove the tree with
    `baustelle.removal`, which clears them. ACLs (SCHILY.acl) are set where the file system keeps such lists.
    The time it takes is in proportion to the plain bytes, and to what layers below have that is deleted; `check` is
    called many times a second, to raise what shall end it. `algorithm` is that of the digest, a name of hashlib. `budget`
    is what the image has left, by default one of its own for each layer.

    Raises CorruptLayerError for bytes that make no layer, BoundExceededError for too many, and UnpackError for an
    entry that cannot be made, naming entry and reason; what was unpacked until then stays, for the caller to remove.
    """
    digest = hashlib.new(algorithm)
    budget = budget or Budget()
    packed = _Counted(stream)
    window = Window(budget, check)

    def hashed(chunks: Iterator[bytes]) -> Iterator[bytes]:
        plain = 0
        for chunk in chunks:
            check()
            plain += len(chunk)
            budget.take_bytes(len(chunk))
            budget.check_ratio(packed.bytes, plain)
            digest.update(chunk)
            yield chunk

    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnpackError(f"cannot unpack into {root}: {error.strerror}") from error
    try:
        with Extractor(root_fd, whiteouts, check, budget) as extractor:
            archive = TarStream(hashed(plain_chunks(packed, window)))
            for entry in archive:
                budget.take_entry()
                extractor.add(entry, archive)
            extractor.finish()
    finally:
        window.release()
        os.close(root_fd)
    return Unpacked(
        diff_id=f"{algorithm}:{digest.hexdigest()}",
        size=extractor.size,
        entries=extractor.entries,
        skipped_xattrs=tuple(sorted(extractor.skipped_xattrs)),
        tree=extractor.tree if whiteouts is not Whiteouts.APPLY else None,
    )


class _Counted:
    """A source whose bytes are counted as they are read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.bytes = 0

    def read(self, size: int, /) -> bytes:
        """As the source."""
        data = self._source.read(size)
        self.bytes += len(data)
        return data


class _AbandonedError(Exception):
    """The event loop's side gave up; ends the thread."""


class _Pipe:
    """Bytes from an event loop to one reading thread; the loop waits while `_QUEUED_CHUNKS` are unread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(_QUEUED_CHUNKS)
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._ended = False
        self._abandoned = False
        self._unread = False

    async def put(self, chunk: bytes) -> None:
        """Queue a chunk, when there is room for it; drop it if nobody reads any more."""
        await self._free.acquire()
        if self._unread or not chunk:
            self._free.release()
        else:
            self._queue.put(chunk)

    def end(self, *, abandoned: bool) -> None:
        """Nothing more comes. Abandoned, the thread's next read raises instead of giving what is queued."""
        self._abandoned |= abandoned
        self._queue.put(b"")

    def stop_reading(self) -> None:
        """The thread has ended."""
        self._unread = True
        self._free.release()

    def check(self) -> None:
        """The thread's side: raises if the loop's side has given up."""
        if self._abandoned:
            raise _AbandonedError

    def read(self, size: int, /) -> bytes:
        """The thread's side: the next bytes, at most `size`; none at the end."""
        if not self._rest and not self._ended:
            self._rest = self._queue.get()
            self._ended = not self._rest
            if not self._ended:
                self._loop.call_soon_threadsafe(self._free.release)
        self.check()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


async def unpack_stream(
    chunks: AsyncIterator[bytes],
    root: Path,
    *,
    whiteouts: Whiteouts,
    algorithm: str = "sha256",
    budget: Budget | None = None,
) -> Unpacked:
    """`unpack` for bytes that arrive on the event loop, in a thread of its own.

    The thread holds back the iterator while it is behind. It has ended when this returns or raises, also
    when it is cancelled: nobody writes below `root` any more. An async generator is closed.
    What `chunks` raises wins over what its bytes led to, so after bytes that make no layer it is
    read to its end: a digest mismatch there is told as such and not as a corrupt layer.
    Raises as `unpack`, and whatever `chunks` raises.
    """
    loop = asyncio.get_running_loop()
    pipe = _Pipe()
    unpacked: asyncio.Future[Unpacked] = loop.create_future()

    def work() -> None:
        try:
            result = unpack(
                pipe, root, whiteouts=whiteouts, algorithm=algorithm, check=pipe.check, budget=budget
            )
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            loop.call_soon_threadsafe(unpacked.set_exception, error)
        else:
            loop.call_soon_threadsafe(unpacked.set_result, result)

    async def pump() -> None:
        try:
            async for chunk in chunks:
                await pipe.put(chunk)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    def when_pumped(task: asyncio.Task[None]) -> None:
        pipe.end(abandoned=task.cancelled() or task.exception() is not None)

    def when_unpacked(future: asyncio.Future[Unpacked]) -> None:
        pipe.stop_reading()
        if not isinstance(future.exception(), CorruptLayerError | None):
            pumped.cancel()  # a full disk, for one: what else would come does not matter

    pumped = loop.create_task(pump())
    pumped.add_done_callback(when_pumped)
    unpacked.add_done_callback(when_unpacked)
    # Not the loop's executor: a few stalled downloads would take all its threads.
    thread = threading.Thread(target=work, name="unpack", daemon=True)
    STARTER.start(thread, lambda error: loop.call_soon_threadsafe(unpacked.set_exception, error))

    cancelled: asyncio.CancelledError | None = None
    both: list[asyncio.Future[Any]] = [pumped, unpacked]
    while not (pumped.done() and unpacked.done()):
        try:
            await asyncio.wait(both)
        except asyncio.CancelledError as error:
            cancelled = error
            pumped.cancel()
            pipe.end(abandoned=True)
    if cancelled is not None:
        raise cancelled
    if not pumped.cancelled() or isinstance(unpacked.exception(), _AbandonedError):
        pumped.result()
    return unpacked.result()
