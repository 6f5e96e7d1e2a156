"""One task for many deadlines: it sleeps until the earliest, and sleeps without end when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from metadata.deadlines import Deadlines
from metadata.model import MetadataUnavailable
from runtime.clock import Clock
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata")

RETRY_SECONDS = 1.0
"""Deadlines that came while nothing could be decided are tried again after this."""


class DeadlineWatch:
    """Calls ``due`` with keys whose deadline has come, at most ``due_max`` at a time; they have none from then on.

    When ``due`` raises MetadataUnavailable they are due again a little later. One event loop.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        supervisor: Supervisor,
        due: Callable[[Sequence[str]], Awaitable[None]],
        due_max: int,
    ) -> None:
        self._name = name
        self._clock = clock
        self._supervisor = supervisor
        self._due = due
        self._due_max = due_max
        self._deadlines = Deadlines()
        self._sleeping_until_ms: int | None = None
        self._earlier: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to watch; the supervisor ends it."""
        self._supervisor.start(self._name, self._watch())

    def now_ms(self) -> int:
        """What deadlines are measured by: milliseconds that never go back."""
        return int(self._clock.monotonic() * 1000)

    def set(self, key: str, deadline_ms: int) -> None:
        """``key`` is due at ``deadline_ms`` at the latest; an earlier deadline of it stays."""
        self._deadlines.set(key, deadline_ms)
        sleeping = self._earlier is not None and not self._earlier.done()
        if sleeping and (self._sleeping_until_ms is None or deadline_ms < self._sleeping_until_ms):
            assert self._earlier is not None
            self._earlier.set_result(None)

    def clear(self) -> None:
        self._deadlines.clear()

    async def _watch(self) -> None:
        while True:
            due = self._deadlines.due(self.now_ms(), self._due_max)
            if not due:
                await self._sleep()
                continue
            try:
                await self._due(due)
            except MetadataUnavailable as error:
                _log.warning("deadlines_postponed", task=self._name, keys=len(due), error=str(error))
                for key in due:
                    self._deadlines.set(key, self.now_ms() + int(RETRY_SECONDS * 1000))
                await self._clock.sleep(RETRY_SECONDS)

    async def _sleep(self) -> None:
        """Until the earliest deadline, or until an earlier one is set."""
        self._earlier = asyncio.get_running_loop().create_future()
        self._sleeping_until_ms = self._deadlines.next_ms()
        if self._sleeping_until_ms is None:
            await self._earlier
            return
        seconds = max((self._sleeping_until_ms - self.now_ms()) / 1000, 0.001)
        sleep = self._supervisor.start(f"{self._name}-sleep", self._clock.sleep(seconds))
        try:
            await asyncio.wait((sleep, self._earlier), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
