"""Descriptors, indexes and manifests (OCI image-spec v1.1; Docker schema 2 reads the same).

Parsing is strict about what decides which bytes are trusted: a document that could be read both as an
index and as a manifest is refused (CVE-2021-41190), and its own ``mediaType``, which the digest covers,
beats the HTTP header.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from registratur import media
from registratur.digest import parse_digest
from registratur.errors import InvalidDigestError, MalformedContentError, UnsupportedContentError
from registratur.fields import Fields
from registratur.platform import Platform

MAX_LAYERS = 1000
"""The most layers of an image: twice what overlayfs stacks (OVL_MAX_STACK in fs/overlayfs of Linux); others take more."""

MAX_SIZE = 2**62
"""The most bytes that a descriptor may tell, and all of an image's together: what CRI's numbers and databases hold."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What some content is, where it is found (by digest) and how long it is, in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """One image for many platforms: an OCI image index or a Docker manifest list."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its config and its layers, lowest first; `subject` is what it is about, if not itself."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None


def parse_manifest(data: bytes, what: str = "manifest") -> Index | Manifest:
    """Read an index or a manifest, told apart by ``mediaType`` and, where it is missing, by shape.

    Raises MalformedContentError, and UnsupportedContentError for schema 1 and for what is no image.
    """
    document = Fields.parse(what, data)
    media_type = document.string("mediaType")
    has_index, has_manifest = "manifests" in document, "layers" in document or "config" in document
    if "fsLayers" in document:
        raise UnsupportedContentError(
            f"{what} is of Docker schema 1: push the image again with a current tool"
        )
    if has_index and has_manifest:
        raise MalformedContentError(f"{what} is both an index and a manifest")
    if media_type in media.INDEXES or (not media_type and has_index):
        if has_manifest:
            raise MalformedContentError(f"{what} calls itself {media_type}, but is a manifest")
        return _index(document, media_type or media.OCI_INDEX)
    if media_type in media.MANIFESTS or (not media_type and has_manifest):
        if has_index:
            raise MalformedContentError(f"{what} calls itself {media_type}, but is an index")
        return _manifest(document, media_type)
    raise UnsupportedContentError(
        f"{what} is neither an image index nor a manifest (media type {media_type!r})"
    )


def _index(document: Fields, media_type: str) -> Index:
    manifests = tuple(_descriptor(entry) for entry in document.children("manifests"))
    return Index(media_type, manifests, document.mapping("annotations"), *_relation(document))


def _manifest(document: Fields, media_type: str) -> Manifest:
    config = _descriptor(document.child("config"))
    entries = list(islice(document.children("layers"), MAX_LAYERS + 1))
    if len(entries) > MAX_LAYERS:
        raise UnsupportedContentError(
            f"{document.what} lists more than {MAX_LAYERS} layers, which cannot be stacked; build the image with fewer"
        )
    layers = tuple(_descriptor(entry) for entry in entries)
    if config.size + sum(layer.size for layer in layers) > MAX_SIZE:
        raise MalformedContentError(f"{document.what}: its layers have more than {MAX_SIZE} bytes")
    if not media_type:
        media_type = media.DOCKER_MANIFEST if config.media_type == media.DOCKER_CONFIG else media.OCI_MANIFEST
    return Manifest(media_type, config, layers, document.mapping("annotations"), *_relation(document))


def _relation(document: Fields) -> tuple[str, Descriptor | None]:
    """Return the type of an artifact, and what it is about."""
    subject = _descriptor(document.child("subject")) if "subject" in document else None
    return document.string("artifactType"), subject


def _descriptor(entry: Fields) -> Descriptor:
    text = entry.string("digest", default=None)
    try:
        digest = parse_digest(text)
    except InvalidDigestError as error:
        raise MalformedContentError(f"{entry.what}: {error}") from error
    size = entry.integer("size")
    if size > MAX_SIZE:
        raise MalformedContentError(f"{entry.what}: 'size' is {size}, at most {MAX_SIZE} is possible")
    return Descriptor(
        media_type=entry.string("mediaType"),
        digest=digest,
        size=size,
        platform=read_platform(entry.child("platform")) if "platform" in entry else None,
        annotations=entry.mapping("annotations"),
        artifact_type=entry.string("artifactType"),
    )


def read_platform(entry: Fields) -> Platform:
    """Return the platform that an index entry or an image config names, in its canonical spelling."""
    return Platform(
        os=entry.string("os"),
        architecture=entry.string("architecture"),
        variant=entry.string("variant"),
        os_version=entry.string("os.version"),
    ).normalized()
