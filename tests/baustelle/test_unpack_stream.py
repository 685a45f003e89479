"""The bridge from the event loop to the unpacking thread: errors, cancellation, backpressure."""

import asyncio
import gzip
import os
import threading

import pytest

from baustelle.decompress import plain_chunks
from baustelle.unpack import CorruptLayerError, UnpackError, Whiteouts, unpack_stream


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    for thread in threading.enumerate():
        if thread.name == "unpack":
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def big(new_layer):
    return new_layer().file("f", os.urandom(4_000_000)).file("g", b"end").bytes()


def pieces(data, size=50_000):
    return [data[start : start + size] for start in range(0, len(data), size)]


async def served(chunks, error=None):
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if error is not None:
        raise error


class DigestMismatch(Exception):  # noqa: N818
    pass


async def test_the_bytes_arrive(root, big):
    result = await unpack_stream(served(pieces(gzip.compress(big), 777)), root, whiteouts=Whiteouts.APPLY)
    assert result.entries == 2
    assert (root / "g").read_bytes() == b"end"


async def test_empty_chunks_are_no_end(root, big):
    chunks = [part for chunk in pieces(big) for part in (b"", chunk)]
    assert (await unpack_stream(served(chunks), root, whiteouts=Whiteouts.APPLY)).entries == 2


@pytest.mark.parametrize("corrupt", [False, True])
async def test_the_error_of_the_iterator_wins(root, big, corrupt):
    data = b"no archive" * 400_000 if corrupt else big
    with pytest.raises(DigestMismatch):
        await unpack_stream(served(pieces(data), DigestMismatch()), root, whiteouts=Whiteouts.APPLY)


async def test_corrupt_bytes_are_told_when_the_iterator_is_content(root):
    with pytest.raises(CorruptLayerError):
        await unpack_stream(served(pieces(b"no archive" * 400_000)), root, whiteouts=Whiteouts.APPLY)


async def test_an_entry_that_cannot_be_made_ends_the_download(root, new_layer):
    closed = asyncio.Event()

    async def endless():
        try:
            yield new_layer().hard_link("h", "nowhere").bytes()
            while True:
                await asyncio.sleep(0.001)
                yield bytes(100_000)
        finally:
            closed.set()

    async with asyncio.timeout(10):
        with pytest.raises(UnpackError, match="nowhere"):
            await unpack_stream(endless(), root, whiteouts=Whiteouts.APPLY)
    assert closed.is_set()


async def test_cancelling_ends_the_thread_while_nothing_comes(root, big):
    closed = asyncio.Event()

    async def stalling():
        try:
            yield big[:100_000]
            await asyncio.Event().wait()
        finally:
            closed.set()

    task = asyncio.create_task(unpack_stream(stalling(), root, whiteouts=Whiteouts.APPLY))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


async def test_cancelling_at_once(root, big):
    task = asyncio.create_task(unpack_stream(served(pieces(big)), root, whiteouts=Whiteouts.APPLY))
    await asyncio.sleep(0)
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_iterator_waits_for_the_disk(root, big, monkeypatch):
    """While the thread does not read, the iterator must stop soon."""
    taken = 0
    reading = threading.Event()

    async def counting():
        nonlocal taken
        for chunk in pieces(big, 1000):
            taken += 1
            yield chunk

    def blocked(*details):
        reading.wait(10)
        return plain_chunks(*details)

    monkeypatch.setattr("baustelle.unpack.plain_chunks", blocked)
    task = asyncio.create_task(unpack_stream(counting(), root, whiteouts=Whiteouts.APPLY))
    await asyncio.sleep(0.1)
    assert 0 < taken < 40
    reading.set()
    assert (await task).entries == 2
