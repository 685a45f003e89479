"""What the metrics say of pulls and collections."""

from __future__ import annotations

import asyncio
import json

import pytest

from baustelle.errors import CorruptLayerError
from cri.errors import InternalError, ResourceExhaustedError, UnavailableError
from cri.images import ImageStore, outcomes
from cri.metrics import PULL_OUTCOMES, Metrics
from registratur import (
    ConnectError,
    DigestMismatchError,
    NoMatchingPlatformError,
    NotFoundError,
    Platform,
    UnauthorizedError,
)


@pytest.fixture
def metrics(shelf) -> Metrics:
    metrics = Metrics()
    shelf.images = ImageStore(
        shelf.store,
        shelf.content,
        shelf.snapshots,
        shelf.client,
        platforms=[Platform.current()],
        max_parallel=3,
        metrics=metrics,
    )
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"cri_jails_{name}", labels)


async def test_pulls_are_counted_by_outcome_with_their_bytes(shelf, registry, metrics) -> None:
    registry.add("app", "1", "hello", "world")
    await shelf.images.pull(f"{registry.address}/app:1", None)
    assert value(metrics, "image_pulls_total", outcome="pulled") == 1
    assert value(metrics, "image_pull_duration_seconds_count") == 1
    blobs = [path for path in registry.tree.rglob("sha256:*") if path.parent.name == "blobs"]
    manifest = json.loads(next(registry.tree.rglob("manifests/1")).read_text())
    layers = {layer["digest"] for layer in manifest["layers"]}
    had = sum(blob.stat().st_size for blob in blobs if blob.name in layers)
    assert value(metrics, "image_pull_bytes_total") == had > 0
    await shelf.images.pull(f"{registry.address}/app:1", None)  # all is here
    assert value(metrics, "image_pull_bytes_total") == had
    with pytest.raises(NotFoundError):
        await shelf.images.pull(f"{registry.address}/app:2", None)
    assert value(metrics, "image_pulls_total", outcome="not_found") == 1
    assert value(metrics, "image_pulls_in_flight") == 0


async def test_a_pull_that_ends_with_the_daemon_is_cancelled(shelf, registry, metrics, monkeypatch) -> None:
    registry.add("app", "1", "hello")
    begun = asyncio.Event()

    async def stuck(*_):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(shelf.snapshots, "begin", stuck)
    pull = asyncio.create_task(shelf.images.pull(f"{registry.address}/app:1", None))
    await begun.wait()
    assert value(metrics, "image_pulls_in_flight") == 1
    await shelf.images.abandon()
    with pytest.raises(UnavailableError):
        await pull
    assert value(metrics, "image_pulls_total", outcome="cancelled") == 1
    assert value(metrics, "image_pulls_in_flight") == 0


async def test_what_is_collected_is_counted(shelf, registry, metrics) -> None:
    registry.add("app", "1", "hello", "world")
    image = await shelf.images.pull(f"{registry.address}/app:1", None)
    taken = shelf.images.usage().bytes
    assert value(metrics, "collected_total", of="layers") == 0
    await shelf.images.remove(image)
    await shelf.images.layers.settle()
    assert value(metrics, "collected_total", of="layers") == 2
    assert value(metrics, "collected_total", of="content") == 2  # manifest and config
    assert value(metrics, "collections_total", of="layers") == 1
    assert value(metrics, "collected_bytes_total") == taken > 0


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, "pulled"),
        (asyncio.CancelledError(), "cancelled"),
        (NoMatchingPlatformError(), "not_found"),
        (UnauthorizedError(), "denied"),
        (ConnectError(), "unreachable"),
        (DigestMismatchError(), "corrupt"),
        (CorruptLayerError(), "corrupt"),
        (ResourceExhaustedError(), "no_space"),
        (InternalError(), "failed"),
        (RuntimeError(), "failed"),
    ],
)
def test_every_end_has_a_word(error, word) -> None:
    assert outcomes.word(error) == word
    assert word in PULL_OUTCOMES
