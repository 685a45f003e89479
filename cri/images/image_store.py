"""Images: pull, status, list, remove."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import structlog

from baustelle.bounds import Bounds
from cri import tracing
from cri.errors import InternalError, InvalidArgumentError, NotFoundError, UnavailableError
from cri.images import finding, outcomes
from cri.images.disk import refusal
from cri.images.layers import Layers, PullSink, chain_ids
from cri.images.mending import mend, without_tags_of
from cri.images.notes import ImageNotes, says
from cri.images.readings import ContainerLayers, RunnableImages
from cri.images.under_way import PullsUnderWay
from cri.metrics import Metrics
from cri.pinned import Pinned
from cri.sandbox.host import Snapshotter
from cri.sandbox.machine import ContainerState
from cri.sandbox.node import RunnableImage
from cri.sandbox.shared_work import SharedWork
from cri.sandbox.spec import DiskUsage
from cri.state import ContainerRecord, ImageRecord, Store
from registratur import (
    Client,
    ContentStore,
    Credentials,
    InvalidReferenceError,
    Platform,
    Progress,
    PulledImage,
    Reference,
    Step,
    pull,
)

log = structlog.get_logger(__name__)

LEFTOVERS_KEPT = 600.0
"""Seconds that layers without an image stay after a start: a pull that was cut off is tried again, and needs them."""


class ImageStore:
    """The images of the node; implements `cri.sandbox.node.Images`.

    An image is known by its id, the digest of its config. It has the tags and digests by which it was pulled; a tag
    belongs to one image at a time.
    """

    def __init__(
        self,
        store: Store,
        content: ContentStore,
        snapshots: Snapshotter,
        client: Client,
        *,
        platforms: Sequence[Platform],
        max_parallel: int,
        bounds: Bounds | None = None,
        pinned: Pinned | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics = metrics or Metrics()
        self.layers = Layers(snapshots, metrics)
        self._store = store
        self._content = content
        self._client = client
        self._platforms = tuple(platforms)
        self._max_parallel = max_parallel
        self._bounds = bounds or Bounds()
        self._pinned = pinned or Pinned()
        self._pulls: SharedWork[str] = SharedWork("pull")
        self._removals: SharedWork[None] = SharedWork("remove image")
        self.under_way = PullsUnderWay()
        """What is being pulled now."""
        self._pulling = 0
        self._ending = False
        self._failed = False
        """Whether a pull has failed since the content was swept."""
        self._notes = ImageNotes(content.root / "images")
        self._runnable = RunnableImages()
        self._of_containers = ContainerLayers()
        self._leftovers: asyncio.Task[None] | None = None
        self._naming = asyncio.Lock()
        """Held over a read, change and write of records, never over a pull."""
        self._sweeping = asyncio.Lock()
        """Held over a sweep of the content, and over a pull's entry."""

    async def load(self) -> None:
        """Bring records, notes and what is on disk together. Raises nothing for the sake of one image, or of a disk.

        An image whose record was lost is entered again. One that lacks a layer, or whose config cannot be read, is
        dropped, to be pulled again.
        """
        await self._look_at_content()
        try:
            await self.layers.load(await self._running_on())
        except OSError as error:
            # That nothing can be read does not mean that nothing is there.
            log.error("layers cannot be read; images stay as recorded", error=str(error))
            return
        notes = await asyncio.to_thread(self._notes.read)
        for image in await mend(self._store, self._content, self._runnable, notes):
            await self._drop(image)
        for image in list(self._store.images.values()):
            if missing := [chain_id for chain_id in image.chains if not self.layers.has(chain_id)]:
                log.warning(
                    "image lost its layers; pull it again", image=image.id, tags=image.tags, missing=missing
                )
                await self._drop(image)
        if judged := [
            one for image in self._store.images.values() if (one := self._judged(image)) is not image
        ]:
            await self._store.follow(save=judged)
        # Of images that were pulled by a release that wrote none, or whose notes are lost or old.
        await self._note(
            [image for image in self._store.images.values() if not says(notes.get(image.id), image)]
        )
        if self.layers.spare(self._of_images()):
            self._leftovers = asyncio.create_task(self._collect_leftovers())
        await self._clear_away()

    def images(self) -> Iterable[ImageRecord]:
        """All images."""
        return self._store.images.values()

    def find(self, reference: str) -> ImageRecord | None:
        """The image of this id (or the only one that begins so), tag or digest; None if there is none.

        Raises InvalidArgumentError when the word can be none of these.
        """
        return finding.find(self._store.images, reference)

    async def pull(self, reference: str, credentials: Credentials | None) -> str:
        """Bring an image here; its id. Callers who want the same with the same credentials share one pull.

        The registry is asked with these credentials also for what is here, so nobody is given what he may not pull: the
        kubelet pulls again whenever a pod brings others (KubeletEnsureSecretPulledImages).

        Raises RegistryError, UnpackError (BoundExceededError for too large an image), InvalidArgumentError; UnavailableError
        when the daemon ends.
        """
        try:
            parsed = Reference.parse(reference)
        except InvalidReferenceError as error:
            raise InvalidArgumentError(str(error)) from error
        if self._ending:
            raise _ending(parsed)
        try:
            # With other credentials it is another pull, which neither waits for this one nor is let in by it.
            return await self._pulls.run((str(parsed), credentials), lambda: self._pull(parsed, credentials))
        except asyncio.CancelledError:
            if not self._ending:
                raise
            raise _ending(parsed) from None

    async def remove(self, reference: str) -> None:
        """Remove an image with all its names; succeeds on what is gone. Layers in use stay until they are not."""
        image = self.find(reference)
        if image is not None:
            await self._removals.run(image.id, lambda: self._remove(image))

    def runnable(self, reference: str) -> RunnableImage:
        """What a container needs of an image. Raises NotFoundError, ImageConfigError."""
        image = self.find(reference)
        if image is None:
            raise NotFoundError(f"image {reference!r} is not on this node: pull it first")
        return self._runnable.of(image)

    def hold(self, layers: Iterable[str]) -> AbstractContextManager[None]:
        """Keep layers until a record says that they are needed."""
        return self.layers.hold(layers)

    async def collect(self) -> None:
        """Give back layers that no image and no container needs any more. Costs nothing where every layer has an image."""
        needed = self._of_images()
        if self.layers.all_in(needed):
            return
        if strangers := [key for kind, key in self._store.unreadable if kind is ContainerRecord]:
            log.warning("layers stay: nobody knows those of some containers", containers=strangers)
            return
        of_containers = await self._of_containers.read(self._store.containers)
        if of_containers is not None:
            # Looked at anew: while specs were read, an image may have come.
            await self.layers.collect(self._of_images() | of_containers)

    def usage(self) -> DiskUsage:
        """What all images take on disk, unpacked."""
        return self.layers.usage()

    async def abandon(self) -> None:
        """End all pulls, throw their layers away, and begin no more."""
        self._ending = True
        if self._leftovers is not None:
            self._leftovers.cancel()
        await self._pulls.abandon()

    async def settle(self) -> None:
        """Wait for removals; pulls are abandoned."""
        await self.abandon()
        await self._removals.settle()
        await self.layers.settle()

    async def _pull(self, reference: Reference, credentials: Credentials | None) -> str:
        began = time.monotonic()
        self._metrics.pulls_in_flight.inc()
        failure: BaseException | None = None
        try:
            with tracing.span("pull", image=reference), self.under_way.of(str(reference)) as progress:
                return await self._pulled(reference, credentials, progress, began)
        except BaseException as error:
            failure = error
            raise
        finally:
            self._metrics.pulls_in_flight.dec()
            self._metrics.pulls.labels(outcomes.word(failure)).inc()
            self._metrics.pull_seconds.observe(time.monotonic() - began)

    async def _pulled(
        self, reference: Reference, credentials: Credentials | None, progress: Progress, began: float
    ) -> str:
        try:
            image = await self._bring(reference, credentials, progress)
        except Exception as error:
            self._failed = True
            await self._sweep_after_failure()
            directory = self._content.root.parent
            told = await asyncio.to_thread(refusal, error, f"pull {reference}", directory)
            if told is None and isinstance(error, OSError):
                told = InternalError(f"pull {reference}: {error}")
            if told is None:
                raise
            raise told from error
        await self._sweep_after_failure()  # of another pull, that left it to the last one
        log.info(
            "image pulled",
            image=str(reference),
            id=image.id,
            seconds=round(time.monotonic() - began, 3),
            received=progress.received,
            layers=len(progress.layers),
            fetched=len(progress.at(Step.DONE)),
        )
        for own in self._platforms:
            if image.platform.is_newer_than(own):
                log.warning(
                    "an image is made for a newer release than this node's; its programs may fail for what the kernel lacks",
                    image=str(reference),
                    release=image.platform.os_version,
                    node=own.os_version,
                )
        return image.id

    async def _bring(
        self, reference: Reference, credentials: Credentials | None, progress: Progress
    ) -> PulledImage:
        async with self._sweeping:
            self._pulling += 1
        try:
            with PullSink(self.layers, str(reference), self._bounds) as sink:
                image = await pull(
                    self._client,
                    reference,
                    self._platforms,
                    sink,
                    self._content,
                    credentials,
                    max_parallel=self._max_parallel,
                    progress=progress,
                )
                await self._record(reference, image)
        finally:
            self._pulling -= 1
        return image

    async def _sweep_after_failure(self) -> None:
        """Give back what a failed pull has brought; its manifests when no other pull is under way."""
        if self._failed:
            self._failed = self._pulling > 0
            await self._clear_away()

    async def _record(self, reference: Reference, pulled: PulledImage) -> None:
        """Enter the image, and take its tag from whichever image had it."""
        tag, digest = reference.tagged, f"{reference.name}@{pulled.repo_digest}"
        if reference.digest is not None:
            tag = None
        # Decoded there, too: a config may have megabytes.
        config = await asyncio.to_thread(lambda: self._content.read(pulled.config.digest).decode())
        async with self._naming:
            await self._save(pulled, config, tag, digest)

    async def _save(self, pulled: PulledImage, config: str, tag: str | None, digest: str) -> None:
        known = self._store.images.get(pulled.id)
        image = ImageRecord(
            id=pulled.id,
            manifest=pulled.manifest.digest,
            tags=_with(known.tags if known else [], tag),
            digests=_with(known.digests if known else [], digest),
            size=pulled.size,
            chains=list(chain_ids(pulled.diff_ids)),
            config=config,
            user=pulled.config_json.user,
            pinned=False,
            pulled_at=time.time_ns(),
        )
        image = self._judged(image)
        others = [self._judged(other) for other in without_tags_of(image, self._store.images.values())]
        await asyncio.to_thread(self._runnable.keep, image, pulled.config_json)
        try:
            await asyncio.to_thread(self._notes.write, [image, *others])
            await self._store.save(image, *others)
        except Exception:
            await self._take_back(image)
            raise

    def _judged(self, image: ImageRecord) -> ImageRecord:
        """The record as it is to be: pinned or not, by what the image is called now."""
        pinned = self._pinned.has((*image.tags, *image.digests))
        return image if pinned == image.pinned else image.replace(pinned=pinned)

    async def _take_back(self, image: ImageRecord) -> None:
        """Make the notes say what the records do, after an image could not be entered."""
        recorded = self._store.images
        if image.id not in recorded:
            await asyncio.to_thread(self._notes.remove, image.id)
            self._runnable.forget(image)
        touched = [recorded[image.id]] if image.id in recorded else []
        await self._note(
            [*touched, *(one for one in recorded.values() if not set(image.tags).isdisjoint(one.tags))]
        )

    async def _remove(self, image: ImageRecord) -> None:
        async with self._naming:
            await self._drop(image)
        log.info("image removed", id=image.id, tags=image.tags)
        await self._clear_away()

    async def _drop(self, image: ImageRecord) -> None:
        """Forget an image. A disk that takes nothing, being full or read-only, keeps nobody from it."""
        await asyncio.to_thread(self._notes.remove, image.id)
        await self._store.follow(delete=[image])
        self._runnable.forget(image)

    async def _clear_away(self) -> None:
        """Give back layers, manifests and configs that nothing needs, as far as the disk lets us."""
        await self.collect()
        try:
            await self._collect_content()
        except OSError as error:
            log.warning("manifests that no image needs stay", error=str(error))

    async def _collect_leftovers(self) -> None:
        await asyncio.sleep(LEFTOVERS_KEPT)
        self.layers.spare_no_more()
        await self.collect()

    async def _collect_content(self) -> None:
        """Give back manifests and configs that no image needs; a pull under way may be about to need any of them."""
        async with self._sweeping:
            if self._pulling:
                return
            used: set[str] = set()
            for image in self._store.images.values():
                used.update((image.id, image.manifest))
                used.update(digest.partition("@")[2] for digest in image.digests)
            removed = await asyncio.to_thread(self._delete_content_but, used)
            self._metrics.collections.labels("content").inc()
            self._metrics.collected.labels("content").inc(removed)

    def _delete_content_but(self, used: set[str]) -> int:
        doomed = [digest for digest in self._content.digests() if digest not in used]
        for digest in doomed:
            self._content.delete(digest)
        return len(doomed)

    def _of_images(self) -> set[str]:
        return {chain_id for image in self._store.images.values() for chain_id in image.chains}

    # What a start finds

    async def _look_at_content(self) -> None:
        try:
            await asyncio.to_thread(self._content.clean)
        except OSError as error:
            log.warning("what was half pulled stays", error=str(error))
        for path in self._content.put_aside:
            log.error("no directory of the content store; put aside", now=str(path))

    async def _running_on(self) -> Mapping[str, str]:
        """The layers that running containers stand on, each with one of them."""
        running = {
            container.id: container
            for container in self._store.containers.values()
            if container.state == ContainerState.RUNNING
        }
        await self._of_containers.read(running)
        return {
            chain_id: container for container in running for chain_id in self._of_containers.known(container)
        }

    async def _note(self, images: Sequence[ImageRecord]) -> None:
        """Write the notes of images, if the disk takes them."""
        try:
            await asyncio.to_thread(self._notes.write, images)
        except OSError as error:
            log.warning("images have no notes beside the database", error=str(error))


def _ending(reference: Reference) -> UnavailableError:
    return UnavailableError(f"pull {reference}: the daemon is ending; try again when it is back")


def _with(names: Sequence[str], name: str | None) -> list[str]:
    return [*names] if name is None or name in names else [*names, name]
