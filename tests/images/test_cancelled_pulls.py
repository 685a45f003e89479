"""A pull that is cancelled ends at once, whatever it is about, and leaves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from baustelle.bounds import Bounds
from cri.errors import UnavailableError
from cri.images import ImageStore
from cri.state import Store
from registratur import Client, ContentStore, Platform
from tests.images import snapshotters
from tests.images.hostile import MIB, Hostile, diff_id, gzipped, member, repeated, served

MOST = 1.0
"""Seconds, of the many that each of these takes."""


def entries() -> Iterable[bytes]:
    return [member(f"d{number % 99}/f{number}") for number in range(100_000)]


def zeros() -> Iterable[bytes]:
    return [member("f", size=1024 * MIB), *([bytes(MIB)] * 1024)]


def deletions() -> Iterable[bytes]:
    return [member(f"d/.wh.{number}") + member("d/.wh..wh..opq") for number in range(50_000)]


def no_members() -> Iterable[bytes]:
    return [b"".join(gzipped([])) * 1000] * 2000


LAYERS = {
    "entries": lambda: gzipped(entries()),
    "zeros": lambda: gzipped(zeros()),
    "zeros in zstd": lambda: [repeated(8192 * MIB, 20)],
    "deletions": lambda: gzipped(deletions()),
    "empty members": no_members,
}


@pytest.mark.parametrize("kind", snapshotters.KINDS)
@pytest.mark.parametrize("name", LAYERS)
async def test_it_ends_at_once(tmp_path: Path, kind: str, name: str) -> None:
    store = await Store.open(tmp_path / "state.db")
    snapshots = snapshotters.make(tmp_path, kind)
    with served(Hostile(tmp_path)) as registry:
        registry.image("slow", (LAYERS[name](), diff_id([b"none"])))
        async with Client() as client:
            for moment in (0.02, 0.1, 0.3):
                images = ImageStore(
                    store,
                    ContentStore(tmp_path / "content"),
                    snapshots,
                    client,
                    platforms=[Platform.current()],
                    max_parallel=4,
                    bounds=Bounds(max_expansion_ratio=10**6),
                )
                await images.load()
                pull = asyncio.create_task(images.pull(f"{registry.address}/slow:latest", None))
                await asyncio.sleep(moment)
                began = time.monotonic()
                await images.abandon()
                took = time.monotonic() - began
                with pytest.raises(UnavailableError):
                    await pull
                assert took < MOST
                await images.settle()
    snapshots.wait()
    assert [*(tmp_path / "snapshots" / kind).iterdir()] == []
    await store.close()
