"""OCI image layouts: images in a directory (image-spec image-layout.md)."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from baustelle.errors import LayoutError

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

_REF_NAME = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:[._-]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._-]|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Some content of a layout: where it is found and how many bytes it has."""

    digest: str
    size: int

    def descriptor(self, media_type: str) -> dict[str, Any]:
        """The OCI descriptor of this content."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


class BlobWriter:
    """Takes bytes of a blob whose digest is known only at its end."""

    def __init__(self, file: IO[bytes], algorithm: str) -> None:
        self._file = file
        self._hash = hashlib.new(algorithm)
        self._size = 0

    def write(self, data: bytes) -> int:
        """Append `data`."""
        self._hash.update(data)
        self._size += len(data)
        return self._file.write(data)

    @property
    def blob(self) -> Blob:
        """What was written until now."""
        return Blob(f"{self._hash.name}:{self._hash.hexdigest()}", self._size)


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """One image, for one platform, in a layout."""

    layout: "ImageLayout"
    manifest_blob: Blob
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def layers(self) -> list[Mapping[str, Any]]:
        """Descriptors of the layers, lowest first."""
        return list(self.manifest["layers"])

    @property
    def diff_ids(self) -> list[str]:
        """Digests of the uncompressed layers, lowest first."""
        return list(self.config["rootfs"]["diff_ids"])


class ImageLayout:
    """An OCI image layout below `root`, which is made if it is not there. For one writer at a time.

    What is written gets digests of `algorithm`, sha256 or sha512; what is read may have either.
    """

    def __init__(self, root: Path, algorithm: str = "sha256") -> None:
        self.root = root
        self.algorithm = algorithm
        self._blobs = root / "blobs"
        (self._blobs / algorithm).mkdir(parents=True, exist_ok=True)
        marker = root / "oci-layout"
        if not marker.exists():
            _replace(marker, b'{"imageLayoutVersion":"1.0.0"}')
        if not (root / "index.json").exists():
            self._write_index([])

    def path(self, digest: str) -> Path:
        """Where a blob lies. Raises LayoutError for anything but a sha256 or sha512 digest."""
        if _DIGEST.fullmatch(digest) is None:
            raise LayoutError(f"{self.root}: {digest[:150]!r} is no sha256 digest, nor one of sha512")
        algorithm, _, encoded = digest.partition(":")
        return self._blobs / algorithm / encoded

    def read(self, digest: str) -> bytes:
        """A blob, verified. For documents: it is held in memory. Raises LayoutError."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise LayoutError(f"{self.root}: blob {digest} is missing") from None
        algorithm, _, encoded = digest.partition(":")
        if hashlib.new(algorithm, data).hexdigest() != encoded:
            raise LayoutError(f"{self.root}: blob {digest} is damaged; remove it and build again")
        return data

    @contextlib.contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """Write a blob; it appears whole, under its digest, when the block ends without an error."""
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=".blob-", delete=False) as file:
            try:
                writer = BlobWriter(file, self.algorithm)
                yield writer
                file.flush()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(self.path(writer.blob.digest))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def write(self, data: bytes) -> Blob:
        """Write a small blob."""
        with self.writer() as writer:
            writer.write(data)
        return writer.blob

    def write_document(self, document: Mapping[str, Any]) -> Blob:
        """Write a JSON document in the one spelling that this package uses."""
        return self.write(canonical_json(document))

    def adopt(self, image: LayoutImage) -> None:
        """Copy what an image of another layout consists of."""
        for descriptor in [image.manifest["config"], *image.layers]:
            here, there = self.path(descriptor["digest"]), image.layout.path(descriptor["digest"])
            if not here.exists():
                _link_or_copy(there, here)

    def image_of(self, manifest: Blob) -> LayoutImage:
        """The image with this manifest. Raises LayoutError."""
        document = self._document(manifest.digest)
        if "config" not in document or "layers" not in document:
            raise LayoutError(f"{self.root}: {manifest.digest} is not the manifest of an image")
        return LayoutImage(self, manifest, document, self._document(document["config"]["digest"]))

    def tag(self, image: LayoutImage, *names: str) -> None:
        """Give an image names, taking them from whichever image had them."""
        kept = [entry for entry in self._index() if entry.get("annotations", {}).get(_REF_NAME) not in names]
        config = image.config
        platform = {key: config[key] for key in ("architecture", "os", "variant") if config.get(key)}
        for name in names:
            entry = image.manifest_blob.descriptor(OCI_MANIFEST)
            kept.append(entry | {"platform": platform, "annotations": {_REF_NAME: name}})
        self._write_index(kept)

    def names(self) -> dict[str, str]:
        """The names in the layout and the digests of their manifests."""
        return {
            entry["annotations"][_REF_NAME]: entry["digest"]
            for entry in self._index()
            if _REF_NAME in entry.get("annotations", {})
        }

    def image(self, name: str) -> LayoutImage:
        """The image of that name. Raises LayoutError, listing the names there are."""
        for entry in self._index():
            if entry.get("annotations", {}).get(_REF_NAME) == name:
                return self.image_of(Blob(entry["digest"], entry["size"]))
        known = ", ".join(sorted(self.names())) or "none"
        raise LayoutError(f"{self.root}: no image is called {name!r} (there are: {known}); build it first")

    def _document(self, digest: str) -> dict[str, Any]:
        document = json.loads(self.read(digest))
        if not isinstance(document, dict):
            raise LayoutError(f"{self.root}: {digest} is not a JSON object")
        return document

    def _index(self) -> list[dict[str, Any]]:
        return list(json.loads((self.root / "index.json").read_bytes()).get("manifests", []))

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        manifests.sort(key=lambda entry: (entry.get("annotations", {}).get(_REF_NAME, ""), entry["digest"]))
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        _replace(self.root / "index.json", canonical_json(index))


def export_registry_tree(layout: ImageLayout, image: LayoutImage, name: str, tag: str, root: Path) -> None:
    """Write the files that a registry would serve for `name:tag` below `root`.

    Any static file server on `root` is then a registry to pull from (OCI distribution-spec, "Pull").
    Raises LayoutError for a name or tag outside of the spec's grammar.
    """
    if not _REPOSITORY.fullmatch(name) or not _TAG.fullmatch(tag):
        raise LayoutError(f"{name}:{tag}: not a repository name and tag of a registry")
    blobs, manifests = root / "v2" / name / "blobs", root / "v2" / name / "manifests"
    blobs.mkdir(parents=True, exist_ok=True)
    manifests.mkdir(parents=True, exist_ok=True)
    for descriptor in [image.manifest["config"], *image.layers]:
        target = blobs / descriptor["digest"]
        if not target.exists():
            _link_or_copy(layout.path(descriptor["digest"]), target)
    manifest = layout.read(image.manifest_blob.digest)
    _replace(manifests / image.manifest_blob.digest, manifest)
    _replace(manifests / tag, manifest)


def with_tag(name: str) -> str:
    """`name`, with the tag `latest` where it has neither tag nor digest."""
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """JSON whose bytes depend on its content only."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that nobody sees half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(data)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
