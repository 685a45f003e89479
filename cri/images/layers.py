"""Unpacked layers: made once however many pulls want them, removed when nothing stands on them."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from typing import Self

import structlog

from baustelle.unpack import BoundExceededError, Bounds, Budget, Whiteouts, unpack_stream
from cri import tracing
from cri.metrics import Metrics
from cri.sandbox.host import HostError, Snapshotter
from cri.sandbox.spec import DiskUsage
from registratur import DigestMismatchError, compute_digest

log = structlog.get_logger(__name__)

REMOVAL_PATIENCE = 0.2
"""Seconds that a caller waits for layers to be out of sight. A rename takes no time, unless a disk or a pool is busy."""

_UNKNOWN = DiskUsage(0, 0)


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of every layer, lowest first (OCI image-spec config.md, "Layer ChainID").

    That of the lowest is its diff id, of whatever algorithm; all others are sha256.
    """
    return _chain_ids(tuple(diff_ids))


@functools.lru_cache(maxsize=8)  # each layer of an image asks
def _chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(compute_digest(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


class Layers:
    """The committed layers of a snapshotter, and those on their way in or out.

    A layer is held by pulls under way and by containers being made (`hold`); images and containers hold theirs by
    their records. `collect` removes what nobody holds, but for what a daemon that was killed may have been pulling (`spare`).
    """

    def __init__(self, snapshots: Snapshotter, metrics: Metrics) -> None:
        self._snapshots = snapshots
        self.metrics = metrics
        self._committed: dict[str, DiskUsage] = {}
        self._held: Counter[str] = Counter()
        self._coming: dict[str, asyncio.Future[bool]] = {}
        self._going: dict[str, asyncio.Task[None]] = {}
        self._spared: set[str] = set()
        self._measuring: asyncio.Task[None] | None = None

    async def load(self, running: Mapping[str, str]) -> None:
        """Find what the snapshotter has. Raises OSError if that cannot be known.

        A layer that may be incomplete is thrown away, as none of its files can be trusted; unless a container runs on it
        (`running`, layers with a container each), which shows that it is good enough for that.
        """
        found = dict(await self._snapshots.chains())
        for chain_id, reason in (await self._snapshots.doubtful()).items():
            if (container := running.get(chain_id)) is not None:
                log.error(
                    "a layer may be incomplete, but a running container has it; remove that, then pull the image again",
                    layer=chain_id,
                    reason=reason,
                    container=container,
                )
                found[chain_id] = None
            else:
                log.error("a layer is incomplete; thrown away", layer=chain_id, reason=reason)
                await self._remove(chain_id)
        self._committed = {chain_id: usage or _UNKNOWN for chain_id, usage in found.items()}
        unmeasured = [chain_id for chain_id, usage in found.items() if usage is None]
        if unmeasured:
            self._measuring = asyncio.create_task(self._measure(unmeasured))

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

    def spare(self, needed: AbstractSet[str]) -> int:
        """Keep the layers that are here and that nobody needs, until a pull wants them or `spare_no_more`: how many."""
        self._spared = self._committed.keys() - needed
        return len(self._spared)

    def spare_no_more(self) -> None:
        """Let the next `collect` have what no pull has wanted."""
        self._spared.clear()

    async def arrived(self, chain_id: str) -> bool:
        """Whether the layer is here, after waiting for another pull that is bringing it."""
        self._spared.discard(chain_id)
        while (coming := self._coming.get(chain_id)) is not None:
            if await asyncio.shield(coming):
                return True
        return self.has(chain_id)

    async def unpack(
        self, index: int, diff_ids: Sequence[str], chunks: AsyncIterator[bytes], budget: Budget
    ) -> None:
        """Unpack layer `index` of an image, which has `budget` left. Raises DigestMismatchError, UnpackError, and what `chunks` raises."""
        chain = chain_ids(diff_ids)[: index + 1]
        chain_id = chain[-1]
        if await self.arrived(chain_id):
            return  # another pull was quicker
        coming: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._coming[chain_id] = coming
        try:
            if (going := self._going.get(chain_id)) is not None:
                await asyncio.wait([going])
            if not self._snapshots.parallel:
                await self._await_parent(chain)
            await self._unpack(chain, diff_ids[index], chunks, budget)
        finally:
            del self._coming[chain_id]
            coming.set_result(self.has(chain_id))

    async def _unpack(
        self, chain: Sequence[str], diff_id: str, chunks: AsyncIterator[bytes], budget: Budget
    ) -> None:
        whiteouts = Whiteouts.STACKED if self._snapshots.overlay_whiteouts else Whiteouts.APPLY
        chain_id, below = chain[-1], chain[-2::-1]
        algorithm = diff_id.partition(":")[0]
        try:
            root = await self._snapshots.begin(chain_id, below[0] if below else None)
            unpacked = await unpack_stream(
                chunks, root, whiteouts=whiteouts, algorithm=algorithm, budget=budget
            )
            _check(chain_id, unpacked.diff_id, diff_id)
            await self._await_parent(chain)
            await self._snapshots.fit(chain_id, below, unpacked.tree)
            self._committed[chain_id] = await self._snapshots.commit(chain_id)
        except BaseException:
            await asyncio.shield(self._abort(chain_id))
            raise

    async def _await_parent(self, chain: Sequence[str]) -> None:
        if len(chain) > 1 and not await self.arrived(chain[-2]):
            raise DigestMismatchError(f"layer {chain[-1]}: the layer below it, {chain[-2]}, failed to arrive")

    async def _abort(self, chain_id: str) -> None:
        try:
            await self._snapshots.abort(chain_id)
        except (
            OSError,
            HostError,
        ) as error:  # of a disk that has become read-only; why the pull failed is told anyway
            log.warning("an unfinished layer stays until the next start", layer=chain_id, error=str(error))

    async def collect(self, needed: Iterable[str]) -> None:
        """Remove every layer that is neither needed nor held; what takes longer than a moment goes on behind the caller.

        A layer that cannot be removed is told in the log, and tried again with the next call.
        """
        keep = {*needed, *self._held, *self._coming, *self._spared}
        doomed = [chain_id for chain_id in self._committed if chain_id not in keep]
        self.metrics.collections.labels("layers").inc()
        for chain_id in doomed:
            usage = self._committed.pop(chain_id)
            self._going[chain_id] = asyncio.create_task(self._go(chain_id, usage))
        if doomed:
            log.info("layers are being removed", count=len(doomed))
            await asyncio.wait([self._going[chain_id] for chain_id in doomed], timeout=REMOVAL_PATIENCE)

    async def settle(self) -> None:
        """Wait until nothing is being removed."""
        if self._measuring is not None:
            self._measuring.cancel()
        while self._going:
            await asyncio.wait(list(self._going.values()))

    async def _go(self, chain_id: str, usage: DiskUsage) -> None:
        try:
            if not await self._remove(chain_id):
                self._committed[chain_id] = usage
                return
            self.metrics.collected.labels("layers").inc()
            self.metrics.collected_bytes.inc(usage.bytes)
        finally:
            del self._going[chain_id]

    async def _remove(self, chain_id: str) -> bool:
        try:
            await self._snapshots.remove(chain_id)
        except (OSError, HostError) as error:
            log.warning("a layer cannot be removed", layer=chain_id, error=str(error))
            return False
        return True

    async def _measure(self, chain_ids: Sequence[str]) -> None:
        """Find out what layers take whose figures were lost."""
        for chain_id in chain_ids:
            try:
                usage = await self._snapshots.measure(chain_id)
            except (OSError, HostError) as error:
                log.warning("a layer cannot be measured", layer=chain_id, error=str(error))
                continue
            if chain_id in self._committed:
                self._committed[chain_id] = usage
        log.warning("layers were measured anew: their figures were lost", layers=list(chain_ids))


def _check(chain_id: str, unpacked: str, expected: str) -> None:
    if unpacked != expected:
        raise DigestMismatchError(
            f"layer {chain_id}: unpacks to {unpacked}, the image config says {expected}"
        )


class _Counted(AsyncIterator[bytes]):
    """Chunks, whose bytes are counted as they pass. No generator: nobody has to close it."""

    def __init__(self, chunks: AsyncIterator[bytes], metrics: Metrics) -> None:
        self._chunks = chunks
        self._metrics = metrics
        self.bytes = 0
        """Those that have passed."""

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks)
        self.bytes += len(chunk)
        self._metrics.pull_bytes.inc(len(chunk))
        return chunk


class PullSink:
    """Where one pull's layers go (`registratur.LayerSink`).

    Holds the image's layers from the moment they are known until the `with` block ends, when its record is written.
    """

    def __init__(self, layers: Layers, image: str, bounds: Bounds) -> None:
        """`image` is what it is called in errors, `bounds` what it may bring."""
        self._layers = layers
        self._image = image
        self._budget = Budget(bounds)
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
        return await self._layers.arrived(chain_ids(diff_ids)[index])

    async def receive(
        self, index: int, diff_ids: Sequence[str], media_type: str, chunks: AsyncIterator[bytes]
    ) -> None:
        """Unpack the layer; the compression is told by the bytes, not by `media_type`.

        Raises BoundExceededError with the name of the setting, and what `Layers.unpack` raises.
        """
        with tracing.span("layer", number=index, diff_id=diff_ids[index], media_type=media_type) as span:
            counted = _Counted(chunks, self._layers.metrics)
            try:
                await self._layers.unpack(index, diff_ids, counted, self._budget)
            except BoundExceededError as error:
                raise BoundExceededError(
                    error.bound,
                    f"image {self._image}, layer {index + 1} of {len(diff_ids)} ({diff_ids[index]}): {error}; "
                    f"if you trust it, raise image.{error.bound} in the configuration",
                ) from error
            span.set("bytes", counted.bytes)
