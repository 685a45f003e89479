"""The pages: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes and people."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from cri.monitoring.conditions import Conditions


class MonitoringServer:
    """Serves the pages on a TCP address, on the daemon's own event loop: if that stands still, no probe gets an answer.

    It ends with the loop's other servers; the thread of prometheus_client's own server would have to be joined.
    """

    def __init__(
        self, registry: CollectorRegistry, conditions: Conditions, refresh: Callable[[], Awaitable[None]]
    ) -> None:
        """`refresh` brings the registry's gauges up to date."""
        self._registry = registry
        self._conditions = conditions
        self._refresh = refresh
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The port in use, once started."""

    async def start(self, host: str, port: int) -> None:
        """Listen. Port 0 takes a free one. Raises OSError."""
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
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

    async def _metrics(self, request: web.Request) -> web.Response:
        await self._refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # The process collector reads /proc; that and the formatting stay off the loop.
        body = await asyncio.to_thread(encode, self._registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        if reason := await self._conditions.dead():
            return web.Response(status=503, text=f"{reason}\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        found = await self._conditions.now()
        lines = [
            f"{kind}: {'true' if condition.ok else f'false, {condition.reason}: {condition.message}'}\n"
            for kind, condition in found.items()
        ]
        ready = all(condition.ok for condition in found.values())
        # A message may name a path, whose bytes may be no text.
        text = "".join(lines).encode("utf-8", "backslashreplace").decode()
        return web.Response(status=200 if ready else 503, text=text)
