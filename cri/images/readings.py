"""What is read out of large JSON once and kept: images as containers need them, and the layers of containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import structlog

from baustelle.bundle import ImageDefaults
from baustelle.errors import ImageConfigError
from cri.sandbox.node import RunnableImage
from cri.state import ContainerRecord, ImageRecord
from registratur import ImageConfig, long_json
from registratur.fields import clean
from registratur.image_config import is_read

log = structlog.get_logger(__name__)


class RunnableImages:
    """Images as containers need them. A config may have megabytes, so it is read off the event loop, when it comes."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, ImageDefaults, str]] = {}

    def prepare(self, image: ImageRecord) -> None:
        """Read an image's config. Blocks for as long as parsing takes. Raises ValueError, RecursionError."""
        config = long_json.loads(image.config, is_read)
        if not isinstance(config, dict):
            raise ImageConfigError(f"image config: it is a JSON {type(config).__name__}, expected an object")
        self._read[image.id] = (
            image.config,
            ImageDefaults.from_config(config),
            clean(str(config.get("os") or "")).lower(),
        )

    def keep(self, image: ImageRecord, config: ImageConfig) -> None:
        """Take what a pull has read of an image's config. Blocks for a moment. Raises ImageConfigError."""
        run = {
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.cmd),
            "Env": list(config.env),
            "WorkingDir": config.working_dir,
            "User": config.user,
            "StopSignal": config.stop_signal,
            "Volumes": dict.fromkeys(config.volumes),
        }
        self._read[image.id] = image.config, ImageDefaults.from_config({"config": run}), config.platform.os

    def of(self, image: ImageRecord) -> RunnableImage:
        """What a container needs of an image. Raises ImageConfigError."""
        if image.id not in self._read or self._read[image.id][0] != image.config:
            self.prepare(image)
        _, defaults, system = self._read[image.id]
        return RunnableImage(
            id=image.id,
            reference=image.digests[0] if image.digests else image.id,
            layers=tuple(image.chains),
            defaults=defaults,
            os=system,
        )

    def forget(self, image: ImageRecord) -> None:
        """Drop what was read."""
        self._read.pop(image.id, None)


class ContainerLayers:
    """The layers that containers stand on, by their specs, each of which is read once."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, frozenset[str] | None]] = {}

    async def read(self, containers: Mapping[str, ContainerRecord]) -> set[str] | None:
        """The layers of all these containers, as they are on return; None if a spec cannot be read.

        Then nobody knows what that container stands on.
        """
        for gone in self._read.keys() - containers.keys():
            del self._read[gone]
        # Again, as others may have come meanwhile.
        while unread := [one for one in containers.values() if not self._is_read(one)]:
            self._read.update(await asyncio.to_thread(_read, unread))
        found: set[str] = set()
        unknown = []
        for container_id in containers:
            layers = self._read[container_id][1]
            if layers is None:
                unknown.append(container_id)
            else:
                found |= layers
        if unknown:
            log.warning("layers stay: nobody knows those of some containers", containers=unknown)
            return None
        return found

    def known(self, container_id: str) -> frozenset[str]:
        """The layers of a container whose spec was read; none if it could not be."""
        return self._read[container_id][1] or frozenset()

    def _is_read(self, container: ContainerRecord) -> bool:
        return (known := self._read.get(container.id)) is not None and known[0] is container.spec


def _read(containers: list[ContainerRecord]) -> dict[str, tuple[str, frozenset[str] | None]]:
    return {one.id: (one.spec, _layers(one.spec)) for one in containers}


def _layers(spec: str) -> frozenset[str] | None:
    """The chain ids in a spec; None if it cannot be read."""
    try:
        document = json.loads(spec)
        found = list(document["layers"])
        for mount in document.get("mounts", ()):
            found += mount.get("image_layers", ())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return frozenset(found) if all(isinstance(one, str) for one in found) else None
