"""The pages."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from cri.metrics import Metrics
from cri.monitoring import conditions
from cri.monitoring.conditions import Conditions
from cri.monitoring.server import MonitoringServer
from cri.sandbox.host import Condition

READY = Condition(ok=True)


class Node:
    """What the pages ask."""

    def __init__(self) -> None:
        self.found = {"RuntimeReady": READY, "NetworkReady": READY}
        self.hangs: set[str] = set()
        self.looks = 0
        self.metrics = Metrics()
        self.conditions = Conditions(
            {kind: lambda kind=kind: self.look(kind) for kind in self.found}, lambda: self.look("database")
        )
        self.server = MonitoringServer(self.metrics.registry, self.conditions, self.refresh)

    async def look(self, what: str) -> Condition | None:
        self.looks += 1
        if what in self.hangs:
            await asyncio.Event().wait()
        found = self.found.get(what)
        if isinstance(found, Exception):
            raise found
        return found

    async def refresh(self) -> None:
        self.metrics.images.set(7)

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{self.server.port}{path}") as answer,
        ):
            return answer.status, await answer.text()


@pytest.fixture
async def node(monkeypatch):
    monkeypatch.setattr(conditions, "PATIENCE", 0.1)
    node = Node()
    await node.server.start("127.0.0.1", 0)
    yield node
    await node.server.stop()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_the_page_shows_what_was_observed_and_what_is_found_now(node) -> None:
    node.metrics.rpc_total.labels("s", "Version", "OK").inc()
    node.metrics.rpc_seconds.labels("s", "Version").observe(0.0002)
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{node.server.port}/metrics") as answer:
            text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")
        async with client.get(f"http://127.0.0.1:{node.server.port}/") as missing:
            assert missing.status == 404
    assert 'cri_jails_rpc_total{code="OK",rpc="Version",service="s"} 1.0' in text
    assert 'cri_jails_rpc_duration_seconds_bucket{le="0.0001",rpc="Version",service="s"} 0.0' in text
    assert 'cri_jails_rpc_duration_seconds_bucket{le="0.00025",rpc="Version",service="s"} 1.0' in text
    assert 'cri_jails_image_pulls_total{outcome="denied"} 0.0' in text
    assert "cri_jails_images 7.0" in text
    assert "python_info" in text
    await node.server.stop()
    await node.server.stop()
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get(f"http://127.0.0.1:{node.server.port}/metrics")


async def test_a_taken_port_is_an_error_and_leaves_nothing_open(node) -> None:
    second = Node().server
    with pytest.raises(OSError, match="address already in use"):
        await second.start("127.0.0.1", node.server.port)


async def test_ready_is_what_status_says(node) -> None:
    assert await node.get("/readyz") == (200, "RuntimeReady: true\nNetworkReady: true\n")
    node.found["NetworkReady"] = Condition(ok=False, reason="NetworkBroken", message="no bridge cri0\udcff")
    assert await node.get("/readyz") == (
        503,
        "RuntimeReady: true\nNetworkReady: false, NetworkBroken: no bridge cri0\\udcff\n",
    )
    node.found["RuntimeReady"] = RuntimeError("odd")
    status, text = await node.get("/readyz")
    assert (status, text.splitlines()[0]) == (
        503,
        "RuntimeReady: false, LookFailed: odd; see the daemon's log",
    )


async def test_whoever_hangs_is_told_and_asked_once(node) -> None:
    node.hangs = {"RuntimeReady"}
    for _ in range(3):
        status, text = await node.get("/readyz")
        assert (status, text.splitlines()[0]) == (503, "RuntimeReady: false, Silent: no answer within 0.1 s")
    assert node.looks == 1 + 3  # the one that hangs, and the network's


async def test_alive_is_whoever_answers_and_has_a_database_that_does(node) -> None:
    node.found["RuntimeReady"] = Condition(ok=False, reason="DiskFull", message="full")
    assert await node.get("/healthz") == (200, "ok\n")
    node.hangs = {"database"}
    assert await node.get("/healthz") == (503, "the state database does not answer within 0.1 s\n")


async def test_there_is_nothing_to_change(node) -> None:
    async with aiohttp.ClientSession() as client:
        for path in ("/metrics", "/healthz", "/readyz"):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                url = f"http://127.0.0.1:{node.server.port}{path}"
                async with client.request(method, url, data=b"x") as answer:
                    assert answer.status == 405
    assert node.looks == 0
