"""Metadata servers and clients on loopback, in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry

from metadata.rpc.client import RemoteMetadata
from metadata.rpc.metrics import RpcClientMetrics, RpcServerMetrics
from metadata.rpc.server import RpcServer
from metadata.service import MetadataService
from runtime.clock import Clock, SeededEntropy, SystemClock
from runtime.tasks import Supervisor


class RpcNode:
    """The transport of one metadata process. It leads from :meth:`lead` to :meth:`stand_by`."""

    def __init__(self, secret: str | None = None, clock: Clock | None = None) -> None:
        self.registry = CollectorRegistry()
        self.server = RpcServer(clock or SystemClock(), RpcServerMetrics(self.registry), secret)
        self.failures: list[BaseException] = []
        self._supervisor = Supervisor(lambda _name, error: self.failures.append(error))
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the same port again after :meth:`stop`."""
        app = web.Application()
        self.server.add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def lead(self, service: MetadataService, generation: int, valid: Callable[[], bool] = lambda: True) -> None:
        self._supervisor = Supervisor(lambda _name, error: self.failures.append(error))
        await self.server.begin_term(service, generation, valid, self._supervisor)

    async def stand_by(self) -> None:
        """The service goes on: its owner stops it."""
        self.server.end_term()
        await self._supervisor.stop()

    async def stop(self) -> None:
        await self.stand_by()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        assert not self.failures, self.failures


@asynccontextmanager
async def remote_metadata(
    urls: Sequence[str], *, seed: int = 1, secret: str | None = None, patience_seconds: float = 15.0
) -> AsyncIterator[RemoteMetadata]:
    """A client, closed at the end."""
    failures: list[BaseException] = []
    supervisor = Supervisor(lambda _name, error: failures.append(error))
    client = RemoteMetadata(
        urls,
        SystemClock(),
        SeededEntropy(seed),
        supervisor,
        RpcClientMetrics(CollectorRegistry()),
        secret,
        patience_seconds=patience_seconds,
    )
    await client.start()
    try:
        yield client
    finally:
        await client.close()
        await supervisor.stop()
    assert not failures, failures
