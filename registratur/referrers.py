"""What refers to a manifest: signatures, bills of materials (distribution-spec v1.1, Listing Referrers).

A registry without that API has a tag that is made of the digest, which whoever pushes keeps (Referrers Tag Schema).
"""

import json
import re
from collections.abc import Sequence

from registratur import media
from registratur.digest import compute_digest, split_digest
from registratur.errors import MalformedContentError
from registratur.manifest import Descriptor, Index, Manifest, parse_manifest

PAGES = 16
"""Pages of a list that are read."""

_LINK = re.compile(r'<([^<>]*)>\s*(?:;[^,]*)?;\s*rel="?next"?', re.IGNORECASE)


def fallback_tag(digest: str) -> str:
    """Return the tag that lists what refers to a manifest."""
    algorithm, encoded = split_digest(digest)
    return f"{algorithm[:32]}-{encoded[:64]}"


def next_page(links: Sequence[str]) -> str | None:
    """Return where Link headers (RFC 8288) say that a list goes on."""
    found = [match for text in links if (match := _LINK.search(text))]
    return found[0][1] if found else None


def listed(data: bytes, what: str) -> tuple[Descriptor, ...]:
    """Return what a list has. Raises MalformedContentError."""
    document = parse_manifest(data, what)
    if not isinstance(document, Index):
        raise MalformedContentError(f"{what} is no index")
    return document.manifests


def reference_to(document: Index | Manifest, descriptor: Descriptor) -> Descriptor:
    """Return how a list has a manifest: with its type and its annotations."""
    kind = document.artifact_type
    if not kind and isinstance(document, Manifest):
        kind = document.config.media_type
    return Descriptor(
        descriptor.media_type, descriptor.digest, descriptor.size, None, document.annotations, kind
    )


def extended(entries: Sequence[Descriptor], added: Descriptor) -> tuple[Descriptor, bytes] | None:
    """Return the list with one more entry, and its descriptor; None if it is there."""
    if any(entry.digest == added.digest for entry in entries):
        return None
    document = {
        "schemaVersion": 2,
        "mediaType": media.OCI_INDEX,
        "manifests": [_written(entry) for entry in (*entries, added)],
    }
    data = json.dumps(document).encode()
    return Descriptor(media.OCI_INDEX, compute_digest(data), len(data)), data


def _written(entry: Descriptor) -> dict[str, object]:
    written: dict[str, object] = {
        "mediaType": entry.media_type,
        "digest": entry.digest,
        "size": entry.size,
    }
    if entry.artifact_type:
        written["artifactType"] = entry.artifact_type
    if entry.annotations:
        written["annotations"] = dict(entry.annotations)
    return written
