"""`image rm` and `image prune`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cri.commands.image.errors import CommandError
from cri.commands.image.text import complain, emit, size

if TYPE_CHECKING:
    from cri.api.runtime import v1
    from cri.commands.image.daemon import Daemon


def rm(daemon: Daemon, names: Sequence[str]) -> bool:
    """Remove images and tell what was removed; False if one could not be, or was not there."""
    is_well = True
    for name in names:
        try:
            image = daemon.found(name)
            daemon.remove(image.id)
        except CommandError as error:
            is_well = False
            complain(f"rm {name}: {error}")
        else:
            emit(f"removed {_told(image)}\n")
    return is_well


def prune(daemon: Daemon, *, everything: bool, dry_run: bool) -> bool:
    """Remove what no container uses, of images without a tag or of all; False if something could not be. Raises DaemonError."""
    images = daemon.images()
    used = in_use(daemon, images)
    doomed = [
        image
        for image in images
        if image.id not in used and not image.pinned and (everything or not image.repo_tags)
    ]
    before = _used_bytes(daemon)
    failures = 0
    for image in doomed:
        try:
            if not dry_run:
                daemon.remove(image.id)
        except CommandError as error:
            failures += 1
            complain(f"prune {image.id}: {error}")
        else:
            emit(f"{'would remove' if dry_run else 'removed'} {_told(image)}\n")
    if dry_run or not doomed:
        emit(f"{len(doomed)} of {len(images)} images {'would be' if dry_run else 'were'} removed\n")
    else:
        emit(
            f"{len(doomed) - failures} of {len(images)} images were removed; "
            f"all took {size(before)} on disk before, and {size(_used_bytes(daemon))} now\n"
        )
    return failures == 0


def in_use(daemon: Daemon, images: Iterable[v1.Image]) -> set[str]:
    """The ids of the images that containers run from, or have mounted. Raises DaemonError."""
    known = {name: image.id for image in images for name in (*image.repo_tags, *image.repo_digests)}
    used: set[str] = set()
    for container in daemon.containers():
        named = [container.image_id, container.image_ref]
        for spec in daemon.mounted(container.id):
            named += spec.image_ref, spec.image
        # An id, or, of what an older release has recorded, perhaps a name.
        used.update(known.get(name, name) for name in named if name)
    return used


def _told(image: v1.Image) -> str:
    names = ", ".join((*image.repo_tags, *image.repo_digests))
    return f"{image.id}: {names}" if names else image.id


def _used_bytes(daemon: Daemon) -> int:
    filesystems = daemon.usage().image_filesystems
    return sum(one.used_bytes.value for one in filesystems if one.used_bytes is not None)
