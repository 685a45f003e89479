"""Pushing an image: blobs first, each once, then its manifests, then the index, then the name."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from registratur import media
from registratur.client import MANIFEST_LIMIT, Client
from registratur.credentials import Credentials
from registratur.digest import Verifier
from registratur.errors import InvalidReferenceError, MalformedContentError, NotFoundError
from registratur.manifest import Descriptor, Index, Manifest, parse_manifest
from registratur.reference import Reference
from registratur.sources import BlobSource

_DEPTH_LIMIT = 4  # indexes within indexes
_MANIFEST_COUNT = 1024  # in one push


@dataclass(frozen=True, slots=True)
class PushedImage:
    """What a push has done: the digest that `reference` has now, and what became of each blob.

    `blobs` maps digests to ``uploaded``, ``mounted``, ``there`` (the registry had it).
    """

    reference: Reference
    digest: str
    blobs: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Plan:
    """What is to be pushed, in order: a manifest comes after those that it lists."""

    manifests: dict[str, tuple[Descriptor, bytes]] = field(default_factory=dict)
    blobs: dict[str, Descriptor] = field(default_factory=dict)


async def push(
    client: Client,
    ref: Reference,
    root: Descriptor,
    source: BlobSource,
    credentials: Credentials | None = None,
    *,
    mount_from: Reference | None = None,
    max_parallel: int = 3,
    chunk: int = 0,
) -> PushedImage:
    """Push the manifest or index `root` of `source` as `ref`, by its tag, or by its digest where it has no tag.

    Blobs that the registry has are not sent; those of the repository `mount_from`, of the same registry, are mounted if it
    allows that. At most `max_parallel` blobs are under way at once; each is sent in requests of `chunk` bytes, 0 for one
    request. What an index lists must be in `source`, or in the repository already. Layers that may not be distributed
    (media types of foreign layers) are left where they are. The first failure ends the others.

    Raises RegistryError: NotFoundError for what `source` lacks, DigestMismatchError for what is not as described,
    InvalidReferenceError for a digest in `ref` that is not that of `root`; and what `source` raises.
    """
    if ref.digest not in (None, root.digest):
        raise InvalidReferenceError(f"{ref}: what is to be pushed has the digest {root.digest}")
    beside = ""
    if (
        mount_from is not None
        and mount_from.registry == ref.registry
        and mount_from.repository != ref.repository
    ):
        beside = mount_from.repository
    plan = _Plan()
    await _collect(client, ref, root, source, credentials, plan, 0)
    done = PushedImage(ref, root.digest)

    async def bring(blob: Descriptor) -> None:
        done.blobs[blob.digest] = await client.upload(
            ref, blob, source, credentials, mount_from=beside, chunk=chunk
        )

    await _all(bring, list(plan.blobs.values()), max_parallel)
    *listed, (last, data) = plan.manifests.values()
    for descriptor, document in listed:
        await client.put_manifest(ref, descriptor, document, descriptor.digest, credentials)
    await client.put_manifest(ref, last, data, ref.tag or last.digest, credentials)
    return done


async def _collect(
    client: Client,
    ref: Reference,
    descriptor: Descriptor,
    source: BlobSource,
    credentials: Credentials | None,
    plan: _Plan,
    depth: int,
) -> None:
    """Write down what a manifest needs, then the manifest. Raises RegistryError."""
    if descriptor.digest in plan.manifests:
        return
    if depth > _DEPTH_LIMIT or len(plan.manifests) >= _MANIFEST_COUNT:
        raise MalformedContentError(
            f"{ref}: more than {_DEPTH_LIMIT} indexes are nested, or more than {_MANIFEST_COUNT} manifests listed"
        )
    if depth and not await asyncio.to_thread(source.has, descriptor.digest):
        if await client.has(ref, descriptor.digest, credentials):
            return
        raise NotFoundError(
            f"{ref}: the index lists {descriptor.digest} ({descriptor.platform or 'no platform'}), which is neither here nor "
            "there; bring it here first, or push the manifest of one platform alone"
        )
    data = await _read(ref, descriptor, source)
    document = await asyncio.to_thread(parse_manifest, data, f"{ref}: {descriptor.digest}")
    if isinstance(document, Index):
        for entry in document.manifests:
            await _collect(client, ref, entry, source, credentials, plan, depth + 1)
    else:
        for blob in _blobs(document):
            plan.blobs.setdefault(blob.digest, blob)
    described = Descriptor(document.media_type, descriptor.digest, len(data))
    plan.manifests[descriptor.digest] = (described, data)


def _blobs(manifest: Manifest) -> Sequence[Descriptor]:
    layers = [layer for layer in manifest.layers if not media.is_foreign(layer.media_type)]
    return (*layers, manifest.config)


async def _read(ref: Reference, descriptor: Descriptor, source: BlobSource) -> bytes:
    if descriptor.size > MANIFEST_LIMIT:
        raise MalformedContentError(
            f"{ref}: {descriptor.digest} has {descriptor.size} bytes, at most {MANIFEST_LIMIT} are taken"
        )
    verifier, collected = Verifier(descriptor.digest, descriptor.size), bytearray()
    async with aclosing(source.stream(descriptor.digest, 0)) as pieces:
        async for piece in pieces:
            verifier.update(piece)
            collected += piece
    verifier.finish()
    return bytes(collected)


async def _all(do: Callable[[Descriptor], Awaitable[None]], blobs: Sequence[Descriptor], most: int) -> None:
    """Do something for each blob, `most` at a time; the first failure ends the others, and is raised."""
    slots = asyncio.Semaphore(most)

    async def one(blob: Descriptor) -> None:
        async with slots:
            await do(blob)

    try:
        async with asyncio.TaskGroup() as group:
            for blob in blobs:
                group.create_task(one(blob), name=f"blob {blob.digest}")
    except ExceptionGroup as failures:
        first = failures.exceptions[0]  # the others were cancelled on account of it
        raise first from first.__cause__
