"""Media types of images (OCI image-spec media-types.md, Docker image manifest version 2 schema 2)."""

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

MANIFEST_ACCEPT: Final = f"{OCI_INDEX}, {DOCKER_INDEX}, {OCI_MANIFEST}, {DOCKER_MANIFEST}, */*;q=0.1"
"""Accept header of a manifest request: without it many registries convert to schema 1 or answer 404."""


_FOREIGN: Final = (
    "application/vnd.oci.image.layer.nondistributable.",
    DOCKER_LAYER.replace("diff", "foreign.diff"),
)


def is_foreign(media_type: str) -> bool:
    """Tell whether a layer of that type is not for registries to keep."""
    return media_type.startswith(_FOREIGN)


def is_encrypted(media_type: str) -> bool:
    """Tell whether a layer of that type is encrypted, in the way of ocicrypt."""
    return media_type.endswith("+encrypted")


def bare(content_type: str | None) -> str:
    """Return a Content-Type header without its parameters, in lower case; "" for None."""
    return (content_type or "").partition(";")[0].strip().lower()
