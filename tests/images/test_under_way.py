"""What is told of pulls while they are under way."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from cri.images.under_way import PullsUnderWay
from registratur import DigestMismatchError


@pytest.fixture
def held(shelf, monkeypatch):
    """Set to let layers be unpacked, in whose place two pulls stand."""
    go = asyncio.Event()
    begin = shelf.snapshots.begin

    async def begin_later(*of):
        await go.wait()
        return await begin(*of)

    monkeypatch.setattr(shelf.snapshots, "begin", begin_later)
    monkeypatch.setattr(shelf.images, "under_way", PullsUnderWay(pace=0.05))
    return go


async def test_a_pull_is_shown_and_told_until_its_end(shelf, registry, held) -> None:
    registry.add("app", "1", "hello", "world")
    name = f"{registry.address}/app:1"
    with capture_logs() as logs:
        pull = asyncio.create_task(shelf.images.pull(name, None))
        async with asyncio.timeout(10):
            while sum(line["event"] == "image is being pulled" and line["layers"] == 2 for line in logs) < 2:
                await asyncio.sleep(0.01)
        (shown,) = shelf.images.under_way.shown()
        assert json.loads(json.dumps(shown))["image"] == name
        assert (shown["layers"], shown["ready"], shown["received"]) == (2, 0, 0)
        assert [layer["step"] for layer in shown["under_way"]] == ["fetching", "fetching"]
        assert shown["size"] == sum(layer["size"] for layer in shown["under_way"]) > 0
        held.set()
        await pull
        assert shelf.images.under_way.shown() == []
        count = len(logs)
        await asyncio.sleep(0.15)
        assert len(logs) == count
    told = next(line for line in logs if line["event"] == "image is being pulled")
    assert told["image"] == name
    end = logs[-1]
    assert (end["event"], end["layers"], end["fetched"], end["received"]) == (
        "image pulled",
        2,
        2,
        shown["size"],
    )


async def test_what_is_here_is_not_counted(shelf, registry, held) -> None:
    held.set()
    registry.add("app", "1", "hello", "world")
    registry.add("app", "2", "hello", "moon")
    await shelf.images.pull(f"{registry.address}/app:1", None)
    with capture_logs() as logs:
        await shelf.images.pull(f"{registry.address}/app:2", None)
        await shelf.images.pull(f"{registry.address}/app:2", None)
    ends = [line for line in logs if line["event"] == "image pulled"]
    assert [(end["layers"], end["fetched"]) for end in ends] == [(2, 1), (2, 0)]
    assert ends[0]["received"] > ends[1]["received"] == 0


async def test_a_pull_that_fails_is_shown_no_more(shelf, registry, held) -> None:
    held.set()
    registry.add("app", "1", "hello")
    for blob in registry.tree.rglob("blobs/sha256:*"):
        blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(DigestMismatchError):
        await shelf.images.pull(f"{registry.address}/app:1", None)
    assert shelf.images.under_way.shown() == []
