"""From a job's extents to compacted segments in the object store, one output segment at a time.

What is in memory at a time is one output segment and what it is made of: twice ``segment_bytes_max``, counted in the
agent's budget under "compaction". While the budget is exhausted nothing more is begun: clients go first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import structlog

from ingest.compacted_segment import (
    PlacedExtent,
)
from ingest.compaction.layout import Joined, fill_segments, join_extents, plan_reads
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.place import Placer
from ingest.compaction.read import ExtentReader
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import CompactedWriter, SegmentNames, WrittenSegment
from ingest.segment_ending import SegmentCorrupt
from metadata.compaction import EXTENT_BYTES_MAX, next_level
from metadata.model import Extent
from runtime.budget import Budget
from runtime.clock import Clock
from storage.store import ObjectStore

_log = structlog.get_logger("tidelog.compaction")

PURPOSE = "compaction"
BUDGET_PAUSE_SECONDS = 0.2
"""Between two looks whether clients have left room again."""


class Rewriter:
    """Rewrites extents for one agent, one job at a time."""

    def __init__(
        self,
        store: ObjectStore,
        names: SegmentNames,
        throttle: Throttle,
        budget: Budget,
        clock: Clock,
        metrics: CompactionMetrics,
        segment_bytes_max: int,
    ) -> None:
        self._names = names
        self._writer = CompactedWriter(store, throttle, clock, metrics)
        self._reader = ExtentReader(store, throttle, metrics)
        self._budget = budget
        self._clock = clock
        self._metrics = metrics
        self._segment_bytes_max = segment_bytes_max

    async def rewrite(
        self, extents: Sequence[Extent], level: int, agent_epoch: int
    ) -> AsyncGenerator[WrittenSegment, None]:
        """Segments made of ``extents`` (all of ``level``), each as soon as it is durable. Damaged extents are left out
        and reported. Ending the iteration early leaves nothing behind but what was given out.

        :raises storage.store.StorageError:
        """
        joined = join_extents(extents, EXTENT_BYTES_MAX)
        for group in fill_segments(joined, self._segment_bytes_max):
            while self._budget.exhausted:
                await self._clock.sleep(BUDGET_PAUSE_SECONDS)
            held = 2 * sum(each.byte_length for each in group)
            self._budget.take(PURPOSE, held)
            try:
                written = await self._rewrite_group(group, level, agent_epoch)
            finally:
                self._budget.give(PURPOSE, held)
            if written is not None:
                yield written

    async def _rewrite_group(self, group: Sequence[Joined], level: int, agent_epoch: int) -> WrittenSegment | None:
        data = await self._reader.read(plan_reads(group))
        made: list[PlacedExtent] = []
        sources: list[tuple[Extent, ...]] = []
        for joined in group:
            placed = await self._place(joined, data)
            if placed is not None:
                made.append(placed)
                sources.append(joined.extents)
        data.clear()
        if not made:
            return None
        byte_length = sum(each.byte_length for each in made)
        new_level = next_level(level, byte_length, len(made))
        name = self._names.next(agent_epoch)
        return await self._writer.write(name, new_level, made, sources)

    async def _place(self, joined: Joined, data: dict[tuple[str, int], memoryview]) -> PlacedExtent | None:
        first = joined.extents[0]
        placed = PlacedExtent(first.topic_id, first.partition, first.base_offset)
        try:
            for extent in joined.extents:
                placer = Placer(extent, data.pop((extent.segment_key, extent.byte_position)))
                for _ in placer.steps():
                    await asyncio.sleep(0)
                placed.chunks += placer.chunks
                placed.batch_count += placer.batch_count
                placed.byte_length += extent.byte_length
                placed.last_offset = extent.last_offset
                placed.max_timestamp_ms = max(placed.max_timestamp_ms, extent.max_timestamp_ms)
                placed.commit_ms = max(placed.commit_ms, extent.commit_ms)
            await asyncio.sleep(0)
        except SegmentCorrupt as error:
            self._metrics.corrupt.inc()
            _log.error("compaction_found_damage", error=str(error), partition=first.partition)
            return None
        return placed
