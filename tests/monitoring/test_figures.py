"""What is counted at a scrape."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from cri.metrics import Metrics
from cri.monitoring.conditions import Conditions
from cri.monitoring.figures import Figures
from cri.monitoring.lag import LagSampler
from cri.sandbox.host import Condition
from cri.sandbox.spec import DiskUsage
from cri.sandbox.undo import UndoStack


def one(state: str, warden: object = None) -> SimpleNamespace:
    return SimpleNamespace(record=SimpleNamespace(state=state), warden=warden)


async def test_every_state_has_a_figure() -> None:
    metrics = Metrics()
    pods = SimpleNamespace(
        sandboxes={1: one("ready", object()), 2: one("ready"), 3: one("notready")},
        containers={1: one("running"), 2: one("exited")},
    )
    store = SimpleNamespace(images={"a": 1}, problem="")

    async def broken() -> Condition:
        return Condition(ok=False, reason="X")

    conditions = Conditions({"NetworkReady": broken}, lambda: asyncio.sleep(0))
    images = SimpleNamespace(usage=lambda: DiskUsage(10, 1))
    figures = Figures(metrics, pods=pods, images=images, store=store, conditions=conditions)
    await figures.take()

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"cri_jails_{name}", labels)

    assert value("pods", state="ready") == 2
    assert value("pods", state="creating") == 0
    assert value("containers", state="running") == 1
    assert value("wardens") == 1
    assert value("condition", type="NetworkReady") == 0
    assert value("images") == 1
    assert value("image_disk_bytes") == 10
    assert value("state_writable") == 1
    pods.sandboxes.clear()
    store.problem = "full"
    await figures.take()
    assert value("pods", state="ready") == 0
    assert value("state_writable") == 0


async def test_what_cannot_be_taken_back_is_counted() -> None:
    failed: list[str] = []

    async def fail() -> None:
        raise OSError("no")

    with pytest.raises(RuntimeError):
        async with UndoStack("run sandbox x", contextlib.nullcontext, failed.append) as undo:
            undo.push("sandbox", fail)
            undo.push("directory", lambda: asyncio.sleep(0))
            raise RuntimeError
    assert failed == ["sandbox"]


async def test_a_loop_that_stands_still_is_late() -> None:
    import time

    seen: list[float] = []
    sampler = LagSampler(seen.append, interval=0.02)
    sampler.start()
    time.sleep(0.2)
    await asyncio.sleep(0.05)
    sampler.stop()
    sampler.stop()
    assert seen[0] >= 0.17
    count = len(seen)
    await asyncio.sleep(0.05)
    assert len(seen) == count
