"""A quarter of a minute of a node that is polled; `python -m tests.kubelet.load` has 110 pods and ten minutes."""

from __future__ import annotations

import sys

import pytest

from tests.kubelet.node import Node

pytestmark = [pytest.mark.node, pytest.mark.bench, pytest.mark.timeout(300)]

PODS = 10
SECONDS, IDLE_SECONDS = 12.0, 4.0
HERTZ = 20.0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: the census reads /proc")
async def test_polling_slows_nothing_down_and_leaves_nothing(node: Node) -> None:
    from tests.kubelet import load

    report = await load.measure(node, PODS, SECONDS, IDLE_SECONDS, HERTZ)
    report.show()
    assert report.problems(best_window=True) == []
