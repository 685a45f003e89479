"""Images: pull, status, list, remove."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import structlog

from baustelle.bundle import ImageDefaults
from baustelle.errors import ImageConfigError
from cri.errors import InvalidArgumentError, NotFoundError
from cri.images.layers import Layers, PullSink, chain_ids
from cri.sandbox.host import Snapshotter
from cri.sandbox.node import RunnableImage
from cri.sandbox.shared_work import SharedWork
from cri.sandbox.spec import DiskUsage
from cri.state import ImageRecord, Store
from registratur import (
    Client,
    ContentStore,
    Credentials,
    InvalidReferenceError,
    Platform,
    PulledImage,
    Reference,
    long_json,
    pull,
)

log = structlog.get_logger(__name__)

_IMAGE_ID = re.compile(r"(sha256:)?[0-9a-f]{64}|sha256:[0-9a-f]*")

LONG_CONFIG = 64 * 1024
"""Characters from which on the config of an image is read before anybody asks for it, in a thread."""

_SHORTEST_ID = 12
"""Hexadecimal digits from which on a word may be the beginning of an image id."""


@dataclass(frozen=True, slots=True)
class _Config:
    """What containers need of an image config."""

    defaults: ImageDefaults
    os: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it; a long one blocks. Raises ImageConfigError."""
        try:
            document = long_json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ImageConfigError(f"image config is no JSON: {error}") from error
        if not isinstance(document, dict):
            raise ImageConfigError(f"image config is a JSON {type(document).__name__}, expected an object")
        return cls(ImageDefaults.from_config(document), str(document.get("os", "")))


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
    ) -> None:
        self.layers = Layers(snapshots)
        self._store = store
        self._content = content
        self._client = client
        self._platforms = tuple(platforms)
        self._max_parallel = max_parallel
        self._pulls: SharedWork[str] = SharedWork("pull")
        self._removals: SharedWork[None] = SharedWork("remove image")
        self._pulling = 0
        self._read: dict[str, _Config | ImageConfigError] = {}
        """What has been read of configs, by image id: the digest of the config, so that it never changes."""
        self._naming = asyncio.Lock()
        """Held over a read, change and write of records, never over a pull."""
        self._sweeping = asyncio.Lock()
        """Held over a sweep of the content, and over a pull's entry."""

    async def load(self) -> None:
        """Compare the records with what is on disk: an image that lacks a layer is dropped, to be pulled again."""
        await self.layers.load()
        await asyncio.to_thread(self._content.clean)
        for image in list(self._store.images.values()):
            if len(image.config) > LONG_CONFIG:
                await asyncio.to_thread(self._config, image.id, image.config)
            missing = [chain_id for chain_id in image.chains if not self.layers.has(chain_id)]
            if missing:
                log.warning(
                    "image lost its layers; pull it again", image=image.id, tags=image.tags, missing=missing
                )
                await self._store.delete(image)
        await self.collect()
        await self._collect_content()

    def images(self) -> Iterable[ImageRecord]:
        """All images."""
        return self._store.images.values()

    def find(self, reference: str) -> ImageRecord | None:
        """The image of this id (or the only one that begins so), tag or digest; None if there is none.

        Raises InvalidArgumentError when the word can be none of these.
        """
        if not reference:
            raise InvalidArgumentError("the image's name is empty: give an id, a tag or a digest")
        if (by_id := self._by_id(reference)) is not None:
            return by_id
        try:
            parsed = Reference.parse(reference)
        except InvalidReferenceError as error:
            if _IMAGE_ID.fullmatch(reference):
                return None
            raise InvalidArgumentError(str(error)) from error
        for image in self._store.images.values():
            if parsed.digest is not None:
                if f"{parsed.name}@{parsed.digest}" in image.digests:
                    return image
            elif parsed.tagged in image.tags:
                return image
        return None

    async def pull(self, reference: str, credentials: Credentials | None) -> str:
        """Bring an image here; its id. Callers who want the same with the same credentials share one pull.

        Raises RegistryError, UnpackError, InvalidArgumentError.
        """
        try:
            parsed = Reference.parse(reference)
        except InvalidReferenceError as error:
            raise InvalidArgumentError(str(error)) from error
        return await self._pulls.run(
            str(parsed), lambda: self._pull(parsed, credentials), fingerprint=credentials
        )

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
        if isinstance(known := self._config(image.id, image.config), ImageConfigError):
            raise ImageConfigError(str(known)) from known
        return RunnableImage(
            id=image.id,
            reference=image.digests[0] if image.digests else image.id,
            layers=tuple(image.chains),
            defaults=known.defaults,
            os=known.os,
        )

    def hold(self, layers: Iterable[str]) -> AbstractContextManager[None]:
        """Keep layers until a record says that they are needed."""
        return self.layers.hold(layers)

    async def collect(self) -> None:
        """Give back layers that no image and no container needs any more. Costs nothing where every layer has an image."""
        needed = {chain_id for image in self._store.images.values() for chain_id in image.chains}
        if self.layers.all_in(needed):
            return
        for container in self._store.containers.values():
            spec = json.loads(container.spec)
            needed.update(spec["layers"])
            for mount in spec.get("mounts", ()):
                needed.update(mount.get("image_layers", ()))
        await self.layers.collect(needed)

    def usage(self) -> DiskUsage:
        """What all images take on disk, unpacked."""
        return self.layers.usage()

    async def settle(self) -> None:
        """Wait for removals; pulls are abandoned, their layers thrown away."""
        await self._removals.settle()

    def _by_id(self, word: str) -> ImageRecord | None:
        digits = word.removeprefix("sha256:")
        if (exact := self._store.images.get(f"sha256:{digits}")) is not None:
            return exact
        if len(digits) < _SHORTEST_ID or set(digits) - set("0123456789abcdef"):
            return None
        matches = [
            image for image_id, image in self._store.images.items() if image_id.startswith(f"sha256:{digits}")
        ]
        return matches[0] if len(matches) == 1 else None

    async def _pull(self, reference: Reference, credentials: Credentials | None) -> str:
        began = time.monotonic()
        async with self._sweeping:
            self._pulling += 1
        try:
            with PullSink(self.layers) as sink:
                image = await pull(
                    self._client,
                    reference,
                    self._platforms,
                    sink,
                    self._content,
                    credentials,
                    max_parallel=self._max_parallel,
                )
                await self._record(reference, image)
        finally:
            self._pulling -= 1
        log.info(
            "image pulled", image=str(reference), id=image.id, seconds=round(time.monotonic() - began, 3)
        )
        return image.id

    async def _record(self, reference: Reference, pulled: PulledImage) -> None:
        """Enter the image, and take its tag from whichever image had it."""
        tag, digest = reference.tagged, f"{reference.name}@{pulled.repo_digest}"
        if reference.digest is not None:
            tag = None
        config = await asyncio.to_thread(self._config_of, pulled)
        async with self._naming:
            await self._save(pulled, config, tag, digest)

    def _config_of(self, pulled: PulledImage) -> str:
        """The config of an image, which has been read once it is recorded. Blocks."""
        config = self._content.read(pulled.config.digest).decode()
        self._config(pulled.id, config)
        return config

    def _config(self, image_id: str, text: str) -> _Config | ImageConfigError:
        """What there is in a config, or is wrong with it; read once, as it may have megabytes."""
        if (known := self._read.get(image_id)) is None:
            try:
                known = _Config.parse(text)
            except ImageConfigError as error:
                known = error  # for whoever wants to run the image
            self._read[image_id] = known
        return known

    async def _save(self, pulled: PulledImage, config: str, tag: str | None, digest: str) -> None:
        known = self._store.images.get(pulled.id)
        changed = [
            ImageRecord(
                id=pulled.id,
                manifest=pulled.manifest.digest,
                tags=_with(known.tags if known else [], tag),
                digests=_with(known.digests if known else [], digest),
                size=pulled.size,
                chains=list(chain_ids(pulled.diff_ids)),
                config=config,
                user=pulled.config_json.user,
                pinned=known.pinned if known else False,
                pulled_at=time.time_ns(),
            )
        ]
        changed += [
            image.replace(tags=[other for other in image.tags if other != tag])
            for image in self._store.images.values()
            if tag in image.tags and image.id != pulled.id
        ]
        await self._store.save(*changed)

    async def _remove(self, image: ImageRecord) -> None:
        async with self._naming:
            await self._store.delete(image)
            self._read.pop(image.id, None)
        log.info("image removed", id=image.id, tags=image.tags)
        await self.collect()
        await self._collect_content()

    async def _collect_content(self) -> None:
        """Give back manifests and configs that no image needs; a pull under way may be about to need any of them."""
        async with self._sweeping:
            if self._pulling:
                return
            used: set[str] = set()
            for image in self._store.images.values():
                used.update((image.id, image.manifest))
                used.update(digest.partition("@")[2] for digest in image.digests)
            await asyncio.to_thread(self._delete_content_but, used)

    def _delete_content_but(self, used: set[str]) -> None:
        for digest in list(self._content.digests()):
            if digest not in used:
                self._content.delete(digest)


def _with(names: Sequence[str], name: str | None) -> list[str]:
    return [*names] if name is None or name in names else [*names, name]
