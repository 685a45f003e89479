"""The metrics page."""

from __future__ import annotations

import aiohttp
import pytest

from cri.metrics import Metrics, MetricsServer


async def test_the_page_shows_what_was_observed() -> None:
    metrics = Metrics()
    metrics.rpc_total.labels("s", "Version", "OK").inc()
    metrics.rpc_seconds.labels("s", "Version").observe(0.0002)
    server = MetricsServer(metrics)
    await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{server.port}/metrics") as answer:
            text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")
        async with client.get(f"http://127.0.0.1:{server.port}/") as missing:
            assert missing.status == 404
    assert 'cri_jails_rpc_total{code="OK",rpc="Version",service="s"} 1.0' in text
    assert 'cri_jails_rpc_duration_seconds_bucket{le="0.0001",rpc="Version",service="s"} 0.0' in text
    assert 'cri_jails_rpc_duration_seconds_bucket{le="0.00025",rpc="Version",service="s"} 1.0' in text
    assert "python_info" in text
    await server.stop()
    await server.stop()
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get(f"http://127.0.0.1:{server.port}/metrics")


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    first, second = MetricsServer(Metrics()), MetricsServer(Metrics())
    await first.start("127.0.0.1", 0)
    with pytest.raises(OSError, match="address already in use"):
        await second.start("127.0.0.1", first.port)
    await first.stop()
