"""The pulls that are under way: told in the log at a steady pace, and shown to whoever asks (`crictl info`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import structlog

from registratur import Progress, Step

log = structlog.get_logger(__name__)

PACE = 10.0
"""Seconds between two lines about a pull; one that takes less has none but that of its end."""


class PullsUnderWay:
    """Every pull of the node from its beginning to its end."""

    def __init__(self, pace: float = PACE) -> None:
        self._pace = pace
        self._pulls: dict[Progress, tuple[str, float]] = {}

    @contextlib.contextmanager
    def of(self, image: str) -> Iterator[Progress]:
        """Be one of them while the `with` block lasts; in it, whoever pulls tells what is yielded."""
        progress = Progress()
        self._pulls[progress] = (image, time.monotonic())
        telling = asyncio.create_task(self._tell(image, progress), name=f"progress of {image}")
        try:
            yield progress
        finally:
            telling.cancel()
            del self._pulls[progress]

    def shown(self) -> list[dict[str, object]]:
        """All of them, as JSON has it."""
        now = time.monotonic()
        return [
            {"image": image, "seconds": round(now - began, 1), **_figures(progress)}
            for progress, (image, began) in self._pulls.items()
        ]

    async def _tell(self, image: str, progress: Progress) -> None:
        before = 0
        while True:
            await asyncio.sleep(self._pace)
            speed = round(max(0, progress.received - before) / self._pace)
            before = progress.received
            log.info("image is being pulled", image=image, bytes_per_second=speed, **_figures(progress))


def _figures(progress: Progress) -> dict[str, object]:
    """How far a pull is, in bytes; of its layers, which may be a thousand, those that something happens to."""
    return {
        "received": progress.received,
        "size": progress.size,
        "layers": len(progress.layers),
        "ready": len(progress.at(Step.PRESENT, Step.DONE)),
        "under_way": [
            {
                "digest": event.layer.digest,
                "step": str(event.step),
                "received": event.received,
                "size": event.layer.size,
            }
            for event in progress.at(Step.FETCHING, Step.FETCHED)
        ],
    }
