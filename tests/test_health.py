"""Status says when the node cannot take pods, why, and what to do, and is ready again by itself."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from cri import health
from cri.health import NodeHealth
from cri.reserves import DiskReserve
from cri.sandbox.host import Condition
from cri.state import Store


class Kernel:
    """The host's own finding."""

    def __init__(self) -> None:
        self.found = Condition(ok=True)

    async def __call__(self) -> Condition:
        return self.found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr("cri.state.writer.RETRY_SECONDS", 0.1)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def node(tmp_path: Path, kernel: Kernel):
    store = await Store.open(tmp_path / "state.db")
    reserve = DiskReserve(tmp_path / "reserve", 1024 * 1024)
    reserve.take()
    yield NodeHealth(kernel, store, reserve, [tmp_path])
    await store.close()
    reserve.close()


async def test_a_node_that_is_well(node: NodeHealth, tmp_path: Path) -> None:
    assert await node.condition() == Condition(ok=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "state.db",
        "state.db-wal",
        "state.db-shm",
        "reserve",
    }


async def test_the_kernels_side_is_asked_too(node: NodeHealth, kernel: Kernel) -> None:
    kernel.found = Condition(ok=False, reason="NotRoot", message="run it as root")
    assert await node.condition() == kernel.found


async def test_a_part_that_could_not_start(node: NodeHealth) -> None:
    node.fault("images", "the images cannot be looked at")
    found = await node.condition()
    assert (found.ok, found.reason, found.message) == (
        False,
        "StartIncomplete",
        "the images cannot be looked at",
    )
    node.fault("images", "")
    assert (await node.condition()).ok


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "DiskFull"),
        (errno.EDQUOT, "DiskFull"),
        (errno.EROFS, "DiskReadOnly"),
        (errno.EIO, "StateNotWritable"),
        (errno.EMFILE, "OutOfDescriptors"),
    ],
)
async def test_what_the_disk_says(
    node: NodeHealth, monkeypatch, tmp_path: Path, number: int, reason: str
) -> None:
    def refuse(directory: Path) -> None:
        raise OSError(number, os.strerror(number), str(directory))

    with monkeypatch.context() as patch:
        patch.setattr(health, "_write", refuse)
        found = await node.condition()
    assert (found.ok, found.reason) == (False, reason)
    assert "pods can be stopped and removed" in found.message
    assert str(tmp_path) in found.message or reason == "OutOfDescriptors"
    assert await node.condition() == Condition(ok=True)


async def test_a_disk_that_hangs_costs_one_thread(node: NodeHealth, monkeypatch) -> None:
    import threading

    let_go = threading.Event()
    calls = []

    def hang(directory: Path) -> None:
        calls.append(directory)
        let_go.wait(20)

    monkeypatch.setattr(health, "_write", hang)
    monkeypatch.setattr(health, "PATIENCE", 0.1)
    found = await asyncio.gather(*(node.condition() for _ in range(20)))
    found.append(await node.condition())
    assert {(one.ok, one.reason) for one in found} == {(False, "DiskSilent")}
    assert len(calls) == 1
    let_go.set()
    await asyncio.sleep(0.2)
    assert (await node.condition()).ok


async def test_a_loop_that_was_late_is_not_the_disk(node: NodeHealth, monkeypatch) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.4)
    asked = asyncio.create_task(node.condition())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.8)
    assert (await asked).ok


async def test_many_who_ask_cost_one_look(node: NodeHealth, monkeypatch) -> None:
    monkeypatch.setattr(health, "FRESH_SECONDS", 5.0)
    calls = []
    monkeypatch.setattr(health, "_write", calls.append)
    for _ in range(50):
        assert (await node.condition()).ok
    assert len(calls) == 1


async def test_the_watch_goes_on_whatever_happens(node: NodeHealth, kernel: Kernel, monkeypatch) -> None:
    monkeypatch.setattr(health, "WATCH_SECONDS", 0.01)
    calls = 0

    async def fail() -> Condition:
        nonlocal calls
        calls += 1
        raise RuntimeError("no kernel")

    monkeypatch.setattr(node, "_host", fail)
    watch = asyncio.create_task(node.watch())
    async with asyncio.timeout(5):
        while calls < 3:
            await asyncio.sleep(0.01)
    watch.cancel()
