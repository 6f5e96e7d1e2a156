"""The process's HTTP side: ``/healthz``, ``/readyz`` and ``/metrics``. Unauthenticated: bind it privately."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from runtime.health import Health

SHUTDOWN_SECONDS = 2.0
"""At the end, requests under way may take so long."""


class HttpServer:
    """Serves health and metrics on one address. Other rooms add routes before :meth:`start`."""

    def __init__(self, health: Health, registry: CollectorRegistry) -> None:
        self.app = web.Application()
        self._health = health
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self._refreshes: list[Callable[[], Awaitable[None]]] = []
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/readyz", self._readyz)
        self.app.router.add_get("/metrics", self._metrics)

    def before_scrape(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Await ``refresh`` before each ``/metrics`` answer: for figures that are only worth computing when read."""
        self._refreshes.append(refresh)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port in use (useful when ``port`` is 0).

        :raises OSError: the address cannot be bound.
        """
        self._runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(self._health.live_problems(), {})

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(self._health.ready_problems(), self._health.facts())

    async def _metrics(self, request: web.Request) -> web.Response:
        for refresh in self._refreshes:
            await refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def _verdict(problems: dict[str, str], facts: dict[str, str]) -> web.Response:
    if not problems:
        return web.json_response({"status": "ok", **facts})
    return web.json_response({"status": "failing", "problems": problems, **facts}, status=503)
