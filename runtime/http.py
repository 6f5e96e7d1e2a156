"""The process's HTTP side: ``/healthz``, ``/readyz`` and ``/metrics``. Unauthenticated: bind it privately."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from runtime.clock import Clock, SystemClock
from runtime.health import Health
from runtime.http_guard import Doorkeeper, server_logger

SHUTDOWN_SECONDS: Final = 2.0
"""At the end, requests under way may take so long."""
IDLE_SECONDS: Final = 40.0
"""A connection whose next request does not come, or not to its end, is closed. Our own clients do it after 30 s."""
CONNECTIONS_MAX: Final = 1_000
"""Peers, scrapers, people."""
BACKLOG: Final = 1_024


class HttpServer:
    """Serves health and metrics on one address. Other rooms add routes before :meth:`start`.

    ``connections_max``: beyond it idle connections make room for new ones.
    """

    def __init__(
        self,
        health: Health,
        registry: CollectorRegistry,
        clock: Clock | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.app = web.Application(middlewares=[self._admitted])
        self.connections_max = connections_max
        self._health = health
        self._registry = registry
        self._clock = clock or SystemClock()
        self._runner: web.AppRunner | None = None
        self._doorkeeper: Doorkeeper | None = None
        self._listener: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
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
        self._runner = web.AppRunner(
            self.app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
            logger=server_logger(self._clock),
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None, "it was set up"
        self._doorkeeper = doorkeeper = Doorkeeper(server, self.connections_max)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(doorkeeper, host, port, backlog=BACKLOG)
        self._looking = loop.create_task(doorkeeper.look_forever(self._clock), name="http-connections")
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more requests, and close the connections. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _admitted(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        assert self._doorkeeper is not None, "requests come after the start"
        return await self._doorkeeper.busy(request, handler)

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
