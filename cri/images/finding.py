"""Which image a word means: an id or the beginning of one, a tag, a digest."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cri.errors import InvalidArgumentError
from cri.state import ImageRecord
from registratur import InvalidReferenceError, Reference

_IMAGE_ID = re.compile(r"(sha(?:256|512):)?([0-9a-f]{64}|[0-9a-f]{128})|sha(?:256|512):[0-9a-f]*")
_BEGINNING = re.compile(r"(?P<algorithm>sha256:|sha512:)?(?P<digits>[0-9a-f]*)")

_SHORTEST_ID = 12
"""Hexadecimal digits from which on a word may be the beginning of an image id."""


def find(images: Mapping[str, ImageRecord], reference: str) -> ImageRecord | None:
    """The one of `images`, by id, of this id (or the only one that begins so), tag or digest; None if there is none.

    Raises InvalidArgumentError when the word can be none of these.
    """
    if not reference:
        raise InvalidArgumentError("the image's name is empty: give an id, a tag or a digest")
    if (by_id := _by_id(images, reference)) is not None:
        return by_id
    try:
        parsed = Reference.parse(reference)
    except InvalidReferenceError as error:
        if _IMAGE_ID.fullmatch(reference):
            return None
        raise InvalidArgumentError(str(error)) from error
    for image in images.values():
        if parsed.digest is not None:
            if f"{parsed.name}@{parsed.digest}" in image.digests:
                return image
        elif parsed.tagged in image.tags:
            return image
    return None


def _by_id(images: Mapping[str, ImageRecord], word: str) -> ImageRecord | None:
    match = _BEGINNING.fullmatch(word)
    if match is None:
        return None
    digits, algorithms = (
        match["digits"],
        (match["algorithm"] or "sha256:", match["algorithm"] or "sha512:"),
    )
    for algorithm in algorithms:
        if (exact := images.get(f"{algorithm}{digits}")) is not None:
            return exact
    if len(digits) < _SHORTEST_ID:
        return None
    beginnings = tuple(f"{algorithm}{digits}" for algorithm in algorithms)
    matches = [image for image_id, image in images.items() if image_id.startswith(beginnings)]
    return matches[0] if len(matches) == 1 else None
