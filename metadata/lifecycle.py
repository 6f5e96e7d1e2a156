"""What the metadata service does by itself, behind the commits: rows of what is gone are removed, some at a time.

Nothing here runs within a commit. Each step is one bounded transaction of the store that waits for the commits before
it, or a read beside them; a failed one is tried again later, from what is durable.
"""

from __future__ import annotations

import asyncio

import structlog

from metadata.metrics import MetadataMetrics
from metadata.store.port import MetadataStore, SegmentTotals, StoreUnavailable
from runtime.clock import Clock
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata.lifecycle")

PURGE_ROWS = 1_000
"""Rows removed in one transaction; a commit waits for at most one of these."""
PURGE_PAUSE_SECONDS = 60.0
"""A purge is asked for when there is something to do; it is tried again after this when it failed."""

COUNTED_ROWS = 20_000
"""Segments added up in one read."""
COUNT_SHARE = 1 / 50
"""Of the time, spent on adding them up at most."""


class SteadyTime:
    """Milliseconds since the epoch that no correction of the wall clock moves: read once, then counted.

    What a grace is measured in: a clock that jumps ahead must not shorten it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ms = clock.now_ms()
        self._began = clock.monotonic()

    def now_ms(self) -> int:
        return self._began_ms + self.passed_ms()

    def passed_ms(self) -> int:
        """Since this was made."""
        return int((self._clock.monotonic() - self._began) * 1000)


class Purger:
    """Removes rows that nobody can find any more (:meth:`metadata.store.port.MetadataStore.purge`)."""

    def __init__(self, store: MetadataStore, clock: Clock, time: SteadyTime) -> None:
        self._store = store
        self._clock = clock
        self._time = time
        self._wanted = asyncio.Event()
        self._wanted.set()
        """What an earlier process left."""

    def start(self, supervisor: Supervisor) -> None:
        supervisor.start("metadata-purge", self._run())

    def wake(self) -> None:
        """There is something to remove."""
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                more = True
                while more:
                    more = await self._store.purge(PURGE_ROWS, self._time.now_ms())
                    await asyncio.sleep(0)
            except StoreUnavailable as error:
                _log.warning("metadata_purge_postponed", error=str(error))
                self._wanted.set()
                await self._clock.sleep(PURGE_PAUSE_SECONDS)


class SegmentCounts:
    """Looks up what the bucket holds, for people: how many segments, how much of them is live."""

    def __init__(self, store: MetadataStore, clock: Clock, interval_ms: int, metrics: MetadataMetrics) -> None:
        self._store = store
        self._clock = clock
        self._pause_seconds = interval_ms / 1000
        self._metrics = metrics

    def start(self, supervisor: Supervisor) -> None:
        supervisor.start("metadata-segment-counts", self._run())

    async def _run(self) -> None:
        while True:
            began = self._clock.monotonic()
            try:
                self._show(await self._count())
            except StoreUnavailable as error:
                _log.info("segments_not_counted", error=str(error))
            took = self._clock.monotonic() - began
            await self._clock.sleep(max(self._pause_seconds, took / COUNT_SHARE))

    async def _count(self) -> SegmentTotals:
        totals = part = await self._store.segment_totals(0, COUNTED_ROWS)
        while part.last_id:
            await self._clock.sleep(0.01)  # readers come in between
            part = await self._store.segment_totals(part.last_id, COUNTED_ROWS)
            totals = totals.plus(part)
        return totals

    def _show(self, totals: SegmentTotals) -> None:
        self._metrics.segments.labels("live").set(totals.segments - totals.dead_segments)
        self._metrics.segments.labels("dead").set(totals.dead_segments)
        garbage = totals.segment_bytes - totals.live_bytes - totals.dead_bytes
        for state, size in (("live", totals.live_bytes), ("garbage", garbage), ("dead", totals.dead_bytes)):
            self._metrics.segment_bytes.labels(state).set(size)
