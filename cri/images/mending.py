"""Makes one sound record of each image out of what a start finds: its record, its note, its config."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence

import structlog

from cri.images.notes import check
from cri.images.readings import RunnableImages
from cri.state import ImageRecord, Store
from registratur import ContentStore, RegistryError, compute_digest, split_digest

log = structlog.get_logger(__name__)


async def mend(
    store: Store, content: ContentStore, runnable: RunnableImages, notes: Mapping[str, ImageRecord]
) -> list[ImageRecord]:
    """Enter images anew whose records are lost, older than their notes, or damaged; those of which nothing can be used.

    Every image that stays is ready in `runnable`. Raises nothing for the sake of one image.
    """
    hopeless = []
    oldest_first = sorted(notes, key=lambda one: _age(notes[one]), reverse=True)
    for image_id in dict.fromkeys((*store.images, *oldest_first)):
        record, note = store.images.get(image_id), notes.get(image_id)
        mended = await asyncio.to_thread(_mended, content, runnable, record, note)
        if mended is None:
            log.error("nothing is known of an image but its id; pull it again", image=image_id)
            hopeless.append(record or notes[image_id])
        elif mended is not record:
            log.warning(
                "image entered again: its record was lost, or older", image=image_id, tags=mended.tags
            )
            others = [image for image in store.images.values() if image.id != image_id and _is_sound(image)]
            await store.follow(save=_settled(mended, others))
    return hopeless


def without_tags_of(image: ImageRecord, others: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Those of the other images that have a tag of `image`, without it: a tag belongs to one image."""
    return [
        other.replace(tags=[tag for tag in other.tags if tag not in image.tags])
        for other in others
        if other.id != image.id and not set(image.tags).isdisjoint(other.tags)
    ]


def _settled(mended: ImageRecord, others: Sequence[ImageRecord]) -> list[ImageRecord]:
    """A mended image and those who lose a tag to it; to what was pulled later it loses its own."""
    newer = {tag for other in others if _age(other) < _age(mended) for tag in other.tags}
    mended = mended.replace(tags=[tag for tag in mended.tags if tag not in newer])
    return [mended, *without_tags_of(mended, others)]


def _mended(
    content: ContentStore, runnable: RunnableImages, record: ImageRecord | None, note: ImageRecord | None
) -> ImageRecord | None:
    """The newer of record and note that can be used, with its config; None if neither can be. Blocks."""
    found = [one for one in (record, note) if one is not None]
    for image in sorted(found, key=lambda one: (_age(one), one is not record)):
        try:
            check(image)
            if image is record:
                with contextlib.suppress(
                    ValueError, RecursionError
                ):  # a damaged config: there is another one
                    runnable.prepare(image)
                    return image
            mended = image.replace(config=_config(content, image.id, record))
            runnable.prepare(mended)
        except (OSError, RegistryError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("what is known of an image cannot be used", image=image.id, error=str(error))
        else:
            return mended
    return None


def _is_sound(image: ImageRecord) -> bool:
    try:
        check(image)
    except (TypeError, KeyError):
        return False
    return True


def _config(content: ContentStore, image_id: str, record: ImageRecord | None) -> str:
    """An image's config, whose digest the id is: from the content store, or else from its record."""
    try:
        return content.read(image_id).decode()
    except (OSError, RegistryError):
        config = getattr(record, "config", None)
        if not isinstance(config, str) or not _is(config, image_id):
            raise
        return config


def _is(config: str, image_id: str) -> bool:
    algorithm, _ = split_digest(image_id)
    return compute_digest(config.encode(), algorithm) == image_id


def _age(image: ImageRecord) -> int:
    """For sorting, the newest first; what says nothing of its age last."""
    return -image.pulled_at if type(image.pulled_at) is int else 0
