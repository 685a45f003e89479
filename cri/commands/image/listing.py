"""`image ls`."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cri.commands.image.text import NONE, emit, size, table

if TYPE_CHECKING:
    from cri.api.runtime import v1
    from cri.commands.image.daemon import Daemon

_SHORT_ID = 12
"""Digits; by as many the daemon finds an image."""
_ID = re.compile(r"(?:sha(?:256|512):)?([0-9a-f]{4,128})")
_FAMILIAR = ("docker.io/library/", "docker.io/")
"""What people leave out of a name."""


def ls(
    daemon: Daemon, names: Sequence[str], output: str, *, quiet: bool, digests: bool, no_trunc: bool
) -> None:
    """Print the images that fit one of the names, or all. Raises DaemonError."""
    images = [image for image in daemon.images() if not names or any(fits(image, name) for name in names)]
    if quiet:
        emit("".join(f"{identity(image.id, no_trunc=no_trunc)}\n" for image in images))
    elif output == "json":
        emit(json.dumps({"images": [as_json(image) for image in images]}, indent=2) + "\n")
    elif output == "name":
        emit("".join(f"{name}\n" for name in sorted(name for image in images for name in called(image))))
    else:
        emit(shown(images, digests=digests, no_trunc=no_trunc))


def shown(images: Iterable[v1.Image], *, digests: bool, no_trunc: bool) -> str:
    """A table of images, with a row for each name."""
    header = ["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "SIZE", "PINNED"]
    rows = [
        [
            *names,
            identity(image.id, no_trunc=no_trunc),
            size(image.size),
            "yes" if image.pinned else "no",
        ]
        for image in images
        for names in (_rows_with_digests(image, no_trunc=no_trunc) if digests else _rows(image))
    ]
    # What has no name is last.
    return table(header, sorted(rows, key=lambda row: [(cell == NONE, cell) for cell in row]))


def identity(image_id: str, *, no_trunc: bool) -> str:
    """An id, or what is enough of it."""
    return image_id if no_trunc else image_id.partition(":")[2][:_SHORT_ID] or image_id


def called(image: v1.Image) -> list[str]:
    """What to call an image: its tags, or else its digests, or else its id."""
    return image.repo_tags or image.repo_digests or [image.id]


def fits(image: v1.Image, wanted: str) -> bool:
    """Whether an image has a name, or an id, like that."""
    if (found := _ID.fullmatch(wanted)) and image.id.partition(":")[2].startswith(found[1]):
        return True
    names = [
        *image.repo_tags,
        *(repository for repository, _ in _tags(image)),
        *image.repo_digests,
        *(repository for repository, _ in _digests(image)),
    ]
    short = [name.removeprefix(prefix) for name in names for prefix in _FAMILIAR]
    return any(fnmatch.fnmatchcase(name, wanted) for name in (*names, *short))


def as_json(image: v1.Image) -> dict[str, Any]:
    """An image as protobuf's JSON has it, and crictl: what has 64 bits is text."""
    return {
        "id": image.id,
        "repoTags": image.repo_tags,
        "repoDigests": image.repo_digests,
        "size": str(image.size),
        "uid": None if image.uid is None else {"value": str(image.uid.value)},
        "username": image.username,
        "pinned": image.pinned,
    }


def _rows(image: v1.Image) -> Iterator[list[str]]:
    if image.repo_tags:
        yield from ([repository, tag] for repository, tag in _tags(image))
    else:
        repositories = dict.fromkeys(repository for repository, _ in _digests(image))
        yield from ([repository, NONE] for repository in repositories or [NONE])


def _rows_with_digests(image: v1.Image, *, no_trunc: bool) -> Iterator[list[str]]:
    digests: dict[str, list[str]] = {}
    for repository, digest in _digests(image):
        algorithm, colon, digits = digest.partition(":")
        short = digest if no_trunc else f"{algorithm}{colon}{digits[:_SHORT_ID]}"
        digests.setdefault(repository, []).append(short)
    tagged = set()
    for repository, tag in _tags(image):
        tagged.add(repository)
        yield from ([repository, tag, digest] for digest in digests.get(repository, [NONE]))
    for repository, some in digests.items():
        if repository not in tagged:
            yield from ([repository, NONE, digest] for digest in some)
    if not tagged and not digests:
        yield [NONE, NONE, NONE]


def _tags(image: v1.Image) -> Iterator[tuple[str, str]]:
    for name in image.repo_tags:
        repository, _, tag = name.rpartition(":")
        yield repository, tag


def _digests(image: v1.Image) -> Iterator[tuple[str, str]]:
    for name in image.repo_digests:
        repository, _, digest = name.partition("@")
        yield repository, digest
