"""What every server process is made of, whatever it serves: passed to those who build its parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from runtime.clock import Clock, Entropy
from runtime.health import Health
from runtime.http import HttpServer
from runtime.settings import Settings
from runtime.tasks import Supervisor
from storage.store import ObjectStore

_log = structlog.get_logger("tidelog.process")


class ProcessParts:
    """Settings, time, metrics, health, the HTTP side, tasks with one owner, and what to close at the end.

    ``on_failure(task, error)`` is called when a background task dies: the owner should stop the process.
    """

    def __init__(
        self, settings: Settings, clock: Clock, entropy: Entropy, on_failure: Callable[[str, BaseException], None]
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.entropy = entropy
        self.on_failure = on_failure
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody asks for
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.health = Health()
        self.http = HttpServer(self.health, self.registry, clock)
        self.supervisor = Supervisor(on_failure)
        self.object_store: ObjectStore | None = None
        """Of a process that has one; closed with it."""
        self._closers: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    def closes(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        """Await ``close`` at the end, before what was named earlier."""
        self._closers.append((name, close))

    async def close(self) -> None:
        """Close everything, newest first, then end the tasks. One that fails does not keep the others. Idempotent."""
        while self._closers:
            name, close = self._closers.pop()
            try:
                await close()
            except Exception as error:
                _log.error("close_failed", part=name, error=repr(error))
        await self.supervisor.stop()
