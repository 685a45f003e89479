"""From an index to the one manifest and config that suit a list of platforms, without I/O.

:func:`select` is a generator that yields what it must read next and is sent the bytes. So the same rules
serve a pull, which asks a registry, and :func:`registratur.pull.load`, which asks the disk.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from registratur import media
from registratur.errors import MalformedContentError, NoMatchingPlatformError, UnsupportedContentError
from registratur.image_config import ImageConfig
from registratur.manifest import Descriptor, Index, Manifest, parse_manifest
from registratur.platform import Platform

_DEPTH_LIMIT = 4  # indexes within indexes
_TOLD = 20  # platforms in a message
_READ_LIMIT = 64
"""Manifests and indexes that are opened for one image; those of an index that say no platform are opened one by one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What :func:`select` must read next; `kind` is where registries keep it: "manifests" or "blobs"."""

    kind: Literal["manifests", "blobs"]
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen image: descriptors and their parsed contents."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig


def select(root: Descriptor, platforms: Sequence[Platform], name: str) -> Generator[Wanted, bytes, Selection]:
    """Choose from `root`, an index or a manifest; `name` is for messages.

    The first of `platforms` that has a match wins. Entries of an index that name no platform are opened,
    in order, when no other matches.
    Raises NoMatchingPlatformError, MalformedContentError, UnsupportedContentError.
    """
    offers: list[Platform] = []
    pending = [(root, 0)]
    read: set[str] = set()
    while pending:
        descriptor, depth = pending.pop(0)
        if descriptor.digest in read:
            continue
        if len(read) >= _READ_LIMIT:
            raise MalformedContentError(
                f"{name}: none of {_READ_LIMIT} manifests and indexes is for {_listed(platforms)}; "
                "have the index say their platforms"
            )
        read.add(descriptor.digest)
        document = parse_manifest((yield Wanted("manifests", descriptor)), f"{name}: {descriptor.digest}")
        if isinstance(document, Index):
            if depth >= _DEPTH_LIMIT:
                raise MalformedContentError(f"{name}: indexes are nested more than {_DEPTH_LIMIT} deep")
            chosen = choose(document.manifests, platforms)
            offers += [entry.platform for entry in document.manifests if entry.platform is not None]
            pending = [(entry, depth + 1) for entry in chosen[: _READ_LIMIT + 1]] + pending[:_READ_LIMIT]
            continue
        data = yield Wanted("blobs", document.config)
        config = ImageConfig.parse(data, f"{name}: config {document.config.digest}")
        if len(config.diff_ids) != len(document.layers):
            raise MalformedContentError(
                f"{name}: the manifest lists {len(document.layers)} layers, the config {len(config.diff_ids)}"
            )
        if any(platform.rank(config.platform) is not None for platform in platforms):
            _check_layers(document, name)
            return Selection(descriptor, document, config)
        offers.append(config.platform)
    wanted, offered = _listed(platforms), _listed([*dict.fromkeys(offers)][:_TOLD])
    raise NoMatchingPlatformError(f"{name} has no image for {wanted}; it has {offered or 'none at all'}")


def choose(entries: Sequence[Descriptor], platforms: Sequence[Platform]) -> list[Descriptor]:
    """Return the entries to open, in order: the best match alone, else all without a platform.

    Of several releases of a system the latest that is no newer than the platform's own is best, then one that says
    none, which is for all of them, or else the oldest.
    """
    for platform in platforms:
        ranked = [
            (rank, _by_release(entry.platform, platform), entry)
            for entry in entries
            if entry.platform is not None and (rank := platform.rank(entry.platform)) is not None
        ]
        if ranked:
            return [min(ranked, key=lambda one: one[:2])[2]]
    readable = media.INDEXES | media.MANIFESTS
    return [entry for entry in entries if entry.platform is None and entry.media_type in readable]


def _by_release(offer: Platform, own: Platform) -> tuple[bool, bool, tuple[int, ...]]:
    """For sorting, the best first."""
    if not own.release:
        return False, False, ()
    is_newer = offer.is_newer_than(own)
    release = offer.release if is_newer else tuple(-number for number in offer.release)
    return is_newer, not release, release


def _check_layers(manifest: Manifest, name: str) -> None:
    """See that every layer is one that a registry has, in a form that can be read. Raises UnsupportedContentError."""
    for number, layer in enumerate(manifest.layers, 1):
        if media.is_foreign(layer.media_type):
            trouble = "is foreign: it is not for registries to keep; build the image on a base that may be distributed"
        elif media.is_encrypted(layer.media_type):
            trouble = "is encrypted, and there are no keys here; push the image without encryption"
        else:
            continue
        raise UnsupportedContentError(
            f"{name}: layer {number} of {len(manifest.layers)} ({layer.digest}, {layer.media_type}) {trouble}"
        )


def _listed(platforms: Iterable[Platform]) -> str:
    return ", ".join(str(platform) for platform in platforms)
