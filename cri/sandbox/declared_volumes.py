"""Volumes that an image declares (VOLUME): directories of a container's own, which begin with what the image has there.

They lie in the container's directory, can be written to whatever its root is, and go when that goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cri.sandbox.copytree import copy_tree
from cri.sandbox.durable import remove_any
from cri.sandbox.places import is_image_volume_directory
from cri.sandbox.spec import ContainerSpec, MountSpec

_MODE = 0o755
"""Of a directory that the image does not have."""


def of(spec: ContainerSpec) -> Iterator[MountSpec]:
    """The mounts that show them."""
    return (mount for mount in spec.mounts if is_image_volume_directory(mount.source, spec.directory))


def make(volume: MountSpec, content: str | None) -> None:
    """Make the directory of a volume anew, with owner, mode and content of the directory `content`. Blocks. Raises OSError.

    None if the image has none.
    """
    directory = Path(volume.source)
    remove_any(directory)
    directory.mkdir(parents=True)
    directory.chmod(_MODE)  # whatever the umask is
    if content is not None:
        copy_tree(content, str(directory))
