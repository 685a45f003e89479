"""Unpacked layers: made once however many pulls want them, removed when nothing stands on them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from typing import Self

import structlog

from baustelle.unpack import Whiteouts, unpack_stream
from cri.sandbox.host import Snapshotter
from cri.sandbox.spec import DiskUsage
from registratur import DigestMismatchError

log = structlog.get_logger(__name__)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of every layer, lowest first (OCI image-spec config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            joined = f"{chain[-1]} {diff_id}".encode()
            chain.append("sha256:" + hashlib.sha256(joined).hexdigest())
    return tuple(chain)


class Layers:
    """The committed layers of a snapshotter, and those on their way in or out.

    A layer is held by pulls under way and by containers being made (`hold`); images and containers hold theirs by
    their records. `collect` removes what nobody holds.
    """

    def __init__(self, snapshots: Snapshotter) -> None:
        self._snapshots = snapshots
        self._committed: dict[str, DiskUsage] = {}
        self._held: Counter[str] = Counter()
        self._coming: dict[str, asyncio.Future[bool]] = {}
        self._going: dict[str, asyncio.Task[None]] = {}

    async def load(self) -> None:
        """Find what the snapshotter has."""
        self._committed = dict(await self._snapshots.chains())

    def has(self, chain_id: str) -> bool:
        """Whether the layer is here, whole."""
        return chain_id in self._committed

    def all_in(self, chain_ids: AbstractSet[str]) -> bool:
        """Whether every layer that is here is one of these."""
        return self._committed.keys() <= chain_ids

    def usage(self) -> DiskUsage:
        """What all layers together take on disk."""
        return DiskUsage(
            sum(usage.bytes for usage in self._committed.values()),
            sum(usage.inodes for usage in self._committed.values()),
        )

    @contextmanager
    def hold(self, chain_ids: Iterable[str]) -> Iterator[None]:
        """Keep layers from being collected, whether they are here already or yet to come."""
        held = tuple(chain_ids)
        self._held.update(held)
        try:
            yield
        finally:
            self._held.subtract(held)
            self._held += Counter()  # drops the zeros

    async def arrived(self, chain_id: str) -> bool:
        """Whether the layer is here, after waiting for another pull that is bringing it."""
        while (coming := self._coming.get(chain_id)) is not None:
            if await asyncio.shield(coming):
                return True
        return self.has(chain_id)

    async def unpack(self, index: int, diff_ids: Sequence[str], chunks: AsyncIterator[bytes]) -> None:
        """Unpack layer `index` of an image. Raises DigestMismatchError, UnpackError, and what `chunks` raises."""
        chain = chain_ids(diff_ids[: index + 1])
        chain_id, parent = chain[-1], chain[-2] if index else None
        if await self.arrived(chain_id):
            return  # another pull was quicker
        coming: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._coming[chain_id] = coming
        try:
            if (going := self._going.get(chain_id)) is not None:
                await asyncio.wait([going])
            if parent is not None and not self._snapshots.parallel and not await self.arrived(parent):
                raise DigestMismatchError(f"layer {chain_id}: the layer below it, {parent}, failed to arrive")
            await self._unpack(chain_id, parent, diff_ids[index], chunks)
        finally:
            del self._coming[chain_id]
            coming.set_result(self.has(chain_id))

    async def _unpack(
        self, chain_id: str, parent: str | None, diff_id: str, chunks: AsyncIterator[bytes]
    ) -> None:
        whiteouts = Whiteouts.OVERLAY if self._snapshots.overlay_whiteouts else Whiteouts.APPLY
        root = await self._snapshots.begin(chain_id, parent)
        try:
            unpacked = await unpack_stream(chunks, root, whiteouts=whiteouts)
            _check(chain_id, unpacked.diff_id, diff_id)
            self._committed[chain_id] = await self._snapshots.commit(chain_id)
        except BaseException:
            await asyncio.shield(self._snapshots.abort(chain_id))
            raise

    async def collect(self, needed: Iterable[str]) -> None:
        """Remove every layer that is neither needed nor held."""
        keep = {*needed, *self._held, *self._coming}
        doomed = [chain_id for chain_id in self._committed if chain_id not in keep]
        for chain_id in doomed:
            del self._committed[chain_id]
            self._going[chain_id] = asyncio.create_task(self._snapshots.remove(chain_id))
        for chain_id in doomed:
            try:
                await self._going[chain_id]
            finally:
                del self._going[chain_id]
        if doomed:
            log.info("layers removed", count=len(doomed))


def _check(chain_id: str, unpacked: str, expected: str) -> None:
    if unpacked != expected:
        raise DigestMismatchError(
            f"layer {chain_id}: unpacks to {unpacked}, the image config says {expected}"
        )


class PullSink:
    """Where one pull's layers go (`registratur.LayerSink`).

    Holds the image's layers from the moment they are known until the `with` block ends, when its record is written.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._holds = ExitStack()
        self._holding = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._holds.close()

    async def has(self, index: int, diff_ids: Sequence[str]) -> bool:
        """Say whether the layer is here, or comes with another pull."""
        if not self._holding:
            self._holding = True
            self._holds.enter_context(self._layers.hold(chain_ids(diff_ids)))
        return await self._layers.arrived(chain_ids(diff_ids[: index + 1])[-1])

    async def receive(
        self, index: int, diff_ids: Sequence[str], media_type: str, chunks: AsyncIterator[bytes]
    ) -> None:
        """Unpack the layer; the compression is told by the bytes, not by `media_type`."""
        del media_type
        await self._layers.unpack(index, diff_ids, chunks)
