"""What the node must know of an image beside its content, in a small file each: for the day the database is lost.

<content>/images/sha256-<hex>.json      an image record without its config, which is a blob of the content store

A note is on disk before the image's record is saved, and goes before the record does. So a note without a record is of
an image that is whole, and whose record was lost; and a removed image does not come back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from cri.sandbox import small_files
from cri.sandbox.durable import make_directory, remove_any, write_file
from cri.sandbox.small_files import NEW, sync_directory
from cri.state import ImageRecord

log = structlog.get_logger(__name__)

_NAME = re.compile(r"(sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})\.json")
_LIMIT = 4 * 1024 * 1024
_FIELDS = ("manifest", "tags", "digests", "size", "chains", "user", "pinned", "pulled_at")


class ImageNotes:
    """The notes in a directory, which is made when it is needed. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> dict[str, ImageRecord]:
        """The images that there are notes of, by id, their configs missing. Raises nothing: what cannot be read is told.

        Removes what a crash has left half written.
        """
        found = {}
        strays = []
        try:
            paths = sorted(self._directory.iterdir())
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("no notes of images", directory=str(self._directory), error=str(error))
            return {}
        for path in paths:
            if path.name.endswith(NEW):
                self._remove(path)
            elif not _NAME.fullmatch(path.name):
                strays.append(path.name)
            else:
                try:
                    image = _decode(_id(path), small_files.read(path, _LIMIT))
                except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                    log.warning("a note of an image cannot be read", path=str(path), error=str(error))
                else:
                    found[image.id] = image
        if strays:
            log.warning("no notes of ours; left alone", directory=str(self._directory), names=strays)
        return found

    def write(self, images: Iterable[ImageRecord]) -> None:
        """Write notes, each as a whole and durably. Raises OSError."""
        for image in images:
            if (aside := make_directory(self._directory)) is not None:
                log.error("no directory; put aside", path=str(self._directory), now=str(aside))
            write_file(self._path(image.id), _encode(image))

    def remove(self, image_id: str) -> None:
        """Remove a note, durably; succeeds if there is none. A disk that refuses is told."""
        if self._remove(self._path(image_id)):
            try:
                sync_directory(self._directory)
            except OSError as error:
                log.warning("a note of an image may come back", image=image_id, error=str(error))

    def _remove(self, path: Path) -> bool:
        try:
            remove_any(path)
        except NotADirectoryError:
            return False  # there are no notes
        except OSError as error:
            log.warning("a note of an image stays", path=str(path), error=str(error))
            return False
        return self._directory.is_dir()

    def _path(self, image_id: str) -> Path:
        return self._directory / f"{image_id.replace(':', '-')}.json"


def check(image: ImageRecord) -> ImageRecord:
    """A copy of a record, looked at as closely as what comes from a stranger. Raises TypeError, KeyError."""
    copy = image.checked()
    for name in ("tags", "digests", "chains"):
        if not all(isinstance(item, str) for item in getattr(copy, name)):
            raise TypeError(f"{name}: must be a list of texts")
    return copy


def says(note: ImageRecord | None, image: ImageRecord) -> bool:
    """Whether a note says all that an image's record does, but for the config."""
    return note is not None and all(getattr(note, name) == getattr(image, name) for name in _FIELDS)


def _id(path: Path) -> str:
    return path.name.removesuffix(".json").replace("-", ":", 1)


def _encode(image: ImageRecord) -> bytes:
    return json.dumps({"id": image.id} | {name: getattr(image, name) for name in _FIELDS}).encode()


def _decode(image_id: str, data: bytes) -> ImageRecord:
    """Fields that a newer release has written are passed over."""
    found = json.loads(data)
    if not isinstance(found, Mapping) or found.get("id") != image_id:
        raise ValueError("it is no note of this image")
    return check(ImageRecord(id=image_id, **{name: found[name] for name in _FIELDS}))
