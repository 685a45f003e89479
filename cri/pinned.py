"""Which images the operator has pinned: nobody removes those to make room (CRI `Image.pinned`)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from registratur import InvalidReferenceError, Reference


class Pinned:
    """Images by what they are called.

    A name is that of one image (``busybox:1.36``, or by digest), of all of a repository (``registry.example/base``), or
    has asterisks, each of which stands for anything (``registry.example/node/*``).
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Raises ValueError for what no image can be called."""
        self._patterns = [re.compile(_pattern(name)) for name in names]

    def has(self, names: Iterable[str]) -> bool:
        """Whether one of an image's tags and digests is pinned."""
        return any(pattern.fullmatch(name) for name in names for pattern in self._patterns)


def _pattern(name: str) -> str:
    if "*" in name:
        # In full, as nobody can tell which part of it would be a registry.
        if "/" not in name.lstrip("*") and name.strip("*"):
            raise ValueError(f"{name!r}: with an asterisk, give the registry, too: docker.io/library/{name}")
        return ".*".join(map(re.escape, name.split("*")))
    try:
        reference = Reference.parse(name)
    except InvalidReferenceError as error:
        raise ValueError(str(error)) from error
    if reference.digested is not None:
        return re.escape(reference.digested)
    if ":" in name.rpartition("/")[2]:
        return re.escape(str(reference))
    return re.escape(reference.name) + "[:@].*"
