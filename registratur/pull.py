"""Pulling an image: choose, verify, stream; and finding a pulled image again without a network."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from registratur.client import MANIFEST_LIMIT, Client
from registratur.content import ContentStore
from registratur.credentials import Credentials
from registratur.errors import DigestMismatchError, MalformedContentError, NotFoundError
from registratur.image_config import ImageConfig
from registratur.manifest import Descriptor, parse_manifest
from registratur.platform import Platform
from registratur.progress import Listener, Step, Teller, Told
from registratur.reference import Reference
from registratur.selection import Selection, Wanted, select

CONFIG_LIMIT = 8 * 1024 * 1024
"""Bytes of an image config that are read: it is held in memory, unlike layers."""

LONG_DOCUMENT = 64 * 1024
"""Bytes from which on a manifest or config is parsed in a thread."""


class LayerSink(Protocol):
    """Where the layers of a pull go. `diff_ids` is always the image's whole list, `index` a place in it."""

    async def has(self, index: int, diff_ids: Sequence[str]) -> bool:
        """Say whether layer `index` need not be fetched."""
        ...

    async def receive(
        self, index: int, diff_ids: Sequence[str], media_type: str, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take the compressed bytes of layer `index`.

        Several calls run at once, for lower layers first. Read `chunks` to the end before you commit:
        the digest of the compressed bytes is judged there, by an exception. The diff ID, over the
        uncompressed bytes, is the sink's to check.
        """
        ...


@dataclass(frozen=True, slots=True)
class PulledImage:
    """An image whose manifests are in the content store.

    `manifest` is that of the chosen platform; `repo_digest` is what the reference resolved to: the
    digest of the index if there is one. `size` is in bytes: compressed layers, config and manifest.
    """

    reference: Reference | None
    manifest: Descriptor
    config: Descriptor
    config_json: ImageConfig
    layers: tuple[Descriptor, ...]
    size: int
    repo_digest: str

    @property
    def id(self) -> str:
        """The image ID: the digest of the config."""
        return self.config.digest

    @property
    def platform(self) -> Platform:
        """What the image is for; its release is said by the index where the config does not."""
        said, listed = self.config_json.platform, self.manifest.platform
        if listed is None or said.os_version or listed.os != said.os:
            return said
        return replace(said, os_version=listed.os_version)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of the uncompressed layers, lowest first."""
        return self.config_json.diff_ids

    @property
    def content(self) -> frozenset[str]:
        """The digests this image needs in the content store: what a garbage collector must keep."""
        return frozenset({self.repo_digest, self.manifest.digest, self.config.digest})


async def pull(
    client: Client,
    ref: Reference,
    platforms: Sequence[Platform],
    layers: LayerSink,
    store: ContentStore,
    credentials: Credentials | None = None,
    *,
    max_parallel: int = 3,
    progress: Listener | None = None,
) -> PulledImage:
    """Bring `ref` for the first of `platforms` it offers: metadata to `store`, layers to `layers`.

    At most `max_parallel` layers are under way at once; the first failure, of a layer or its sink, cancels the others and
    is raised; but after wrong bytes of one endpoint the next one is tried. What `store` has already is not fetched again,
    but a tag is always resolved anew, and each pull asks the registry with its own `credentials`, whatever is here.
    `progress` is told of each layer.
    Raises RegistryError and what the sink raises.
    """
    source = _Source(client, ref, store, credentials)
    root, data = await source.root()
    walk = select(root, platforms, str(ref))
    next(walk)  # asks for the root
    while not isinstance(found := await _step(walk, data), Selection):
        data = await source.read(found)
    image = _image(ref, root.digest, found)
    tell = Teller(image.layers, progress or _nobody)
    while True:
        known = len(source.distrusted)
        try:
            await _transfer(source, image, layers, max_parallel, tell)
        except DigestMismatchError:
            # The sink has thrown away what was wrong. Layers that are whole are not fetched again.
            if len(source.distrusted) == known or not client.has_others(ref, source.distrusted):
                raise
        else:
            return image


def load(
    store: ContentStore,
    manifest_digest: str,
    platforms: Sequence[Platform],
    reference: Reference | None = None,
) -> PulledImage:
    """Find an image again in `store` by the digest of its index or manifest; blocks on the disk.

    Says nothing about the layers: those are the sink's. Raises NotFoundError, DigestMismatchError,
    NoMatchingPlatformError.
    """
    data = store.read(manifest_digest)
    root = Descriptor(parse_manifest(data, manifest_digest).media_type, manifest_digest, len(data))
    walk = select(root, platforms, str(reference or manifest_digest))
    next(walk)  # asks for the root
    while not isinstance(found := _next(walk, data), Selection):
        data = store.read(found.descriptor.digest)
    return _image(reference, manifest_digest, found)


Walk = Generator[Wanted, bytes, Selection]


def _next(walk: Walk, data: bytes) -> Wanted | Selection:
    """Give a walk what it has asked for; what it wants next, or what it has found."""
    try:
        return walk.send(data)
    except StopIteration as done:
        selection: Selection = done.value
        return selection


async def _step(walk: Walk, data: bytes) -> Wanted | Selection:
    """As `_next`; a long document is parsed in a thread."""
    if len(data) <= LONG_DOCUMENT:
        return _next(walk, data)
    return await asyncio.to_thread(_next, walk, data)


def _image(reference: Reference | None, repo_digest: str, selection: Selection) -> PulledImage:
    manifest = selection.manifest
    parts = (selection.descriptor, manifest.config, *manifest.layers)
    return PulledImage(
        reference=reference,
        manifest=selection.descriptor,
        config=manifest.config,
        config_json=selection.config,
        layers=manifest.layers,
        size=sum(part.size for part in parts),
        repo_digest=repo_digest,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """One repository, read through the content store."""

    client: Client
    ref: Reference
    store: ContentStore
    credentials: Credentials | None
    distrusted: set[str] = field(default_factory=set)
    """Endpoints that have served wrong bytes."""

    async def root(self) -> tuple[Descriptor, bytes]:
        """Return what the reference points to now."""
        root = await self.client.resolve(self.ref, self.credentials)
        data = await asyncio.to_thread(self._stored, root.digest)
        if data is None:
            # By tag, not by the digest just learnt: a file server may know the manifest by no other name.
            root, data = await self.client.manifest(self.ref, None, self.credentials)
            await asyncio.to_thread(self.store.write, root.digest, data)
        # A HEAD's Content-Length may say anything.
        return replace(root, size=len(data)), data

    async def read(self, wanted: Wanted) -> bytes:
        """Return a manifest or config, of the size and digest that its descriptor says."""
        descriptor = wanted.descriptor
        limit = MANIFEST_LIMIT if wanted.kind == "manifests" else CONFIG_LIMIT
        if descriptor.size > limit:
            raise MalformedContentError(
                f"{self.ref}: {descriptor.digest} has {descriptor.size} bytes, at most {limit} are read"
            )
        data = await asyncio.to_thread(self._stored, descriptor.digest)
        if data is not None:
            return self._of_its_size(descriptor, data)
        if wanted.kind == "manifests":
            _, data = await self.client.manifest(self.ref, descriptor.digest, self.credentials)
        else:
            chunks = await self._chunks(descriptor)
            data = await asyncio.to_thread(b"".join, chunks)  # which lets go of the interpreter for long ones
        self._of_its_size(descriptor, data)
        await asyncio.to_thread(self.store.write, descriptor.digest, data)
        return data

    def blob(self, layer: Descriptor) -> AsyncGenerator[bytes, None]:
        """Stream a blob."""
        return self.client.blob(self.ref, layer, self.credentials, self.distrusted)

    async def _chunks(self, descriptor: Descriptor) -> list[bytes]:
        while True:
            known = len(self.distrusted)
            try:
                return [chunk async for chunk in self.blob(descriptor)]
            except DigestMismatchError:
                if len(self.distrusted) == known or not self.client.has_others(self.ref, self.distrusted):
                    raise

    def _of_its_size(self, descriptor: Descriptor, data: bytes) -> bytes:
        """What a descriptor says of its content must all be true, or none of it is believed (OCI descriptor.md)."""
        if len(data) != descriptor.size:
            raise DigestMismatchError(
                f"{self.ref}: {descriptor.digest} has {len(data)} bytes, its descriptor says {descriptor.size}"
            )
        return data

    def _stored(self, digest: str) -> bytes | None:
        """Return a blob of the store; a damaged one counts as missing and is written again. Blocks."""
        try:
            return self.store.read(digest)
        except (NotFoundError, DigestMismatchError, OSError):  # OSError: the disk cannot read it
            return None


def _nobody(event: object) -> None:
    """Listens to nothing."""


async def _transfer(
    source: _Source,
    image: PulledImage,
    layers: LayerSink,
    max_parallel: int,
    tell: Teller,
) -> None:
    """Stream the layers the sink lacks; they start in order, so none waits for a slot of a higher one."""
    slots = asyncio.Semaphore(max_parallel)

    async def fetch(index: int, layer: Descriptor) -> None:
        async with slots:
            if await layers.has(index, image.diff_ids):
                tell(index, Step.PRESENT)
                return
            tell(index, Step.FETCHING)
            async with aclosing(source.blob(layer)) as blob:
                chunks = Told(blob, partial(tell, index))
                await layers.receive(index, image.diff_ids, layer.media_type, chunks)
                # A sink may stop at the end of the archive; the digest covers what is behind it, too.
                async for _ in chunks:
                    pass
            tell(index, Step.DONE, chunks.received)

    try:
        async with asyncio.TaskGroup() as group:
            for index, layer in enumerate(image.layers):
                group.create_task(fetch(index, layer), name=f"layer {layer.digest}")
    except ExceptionGroup as failures:
        first = failures.exceptions[0]  # the others were cancelled on account of it
        raise first from first.__cause__
