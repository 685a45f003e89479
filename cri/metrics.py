"""Metrics of the daemon, in a registry of its own, and the HTTP page that shows them."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Seconds: from an answer out of memory to a grace period."""


class Metrics:
    """All metrics of one daemon. Other parts add theirs to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rpc_seconds = Histogram(
            "cri_jails_rpc_duration_seconds",
            "Time from request to answer, of streams to their end",
            ("service", "rpc"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.rpc_total = Counter(
            "cri_jails_rpc",
            "Answered calls by gRPC status code",
            ("service", "rpc", "code"),
            registry=self.registry,
        )
        self.rpc_in_flight = Gauge(
            "cri_jails_rpc_in_flight",
            "Calls being worked on",
            ("service", "rpc"),
            registry=self.registry,
        )
        self.streaming_sessions = Gauge(
            "cri_jails_streaming_sessions",
            "Sessions of exec, attach and port-forward whose clients are connected",
            ("kind",),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)


class MetricsServer:
    """`GET /metrics` on a TCP address, on the daemon's own event loop.

    It ends with the loop's other servers; the thread of prometheus_client's own server would have to be joined.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The port in use, once started."""

    async def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one. Raises OSError."""
        application = web.Application()
        application.router.add_get("/metrics", self._page)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and close connections; succeeds if not started."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _page(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # The process collector reads /proc; that and the formatting stay off the loop.
        body = await asyncio.to_thread(encode, self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": content_type})
