"""From a job's extents to compacted segments in the object store, one output segment at a time.

What is in memory at a time is one output segment and what it is made of: twice ``segment_bytes_max``, counted in the
agent's budget under "compaction". While the budget is exhausted nothing more is begun: clients go first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import structlog

from ingest.compacted_segment import (
    COMPACTED_SEQUENCE_MIN,
    EncodedCompactedSegment,
    PlacedExtent,
    encode_compacted_segment,
)
from ingest.compaction.layout import Joined, ReadRange, fill_segments, join_extents, plan_reads
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.place import Placer
from ingest.compaction.throttle import Throttle
from ingest.segment import SegmentName
from ingest.segment_ending import SegmentCorrupt
from metadata.compaction import EXTENT_BYTES_MAX, next_level
from metadata.model import Extent
from runtime.budget import Budget
from runtime.clock import Clock, Entropy
from storage.store import ObjectStore

_log = structlog.get_logger("tidelog.compaction")

PURPOSE = "compaction"
READS_AT_ONCE = 4
BUDGET_PAUSE_SECONDS = 0.2
"""Between two looks whether clients have left room again."""


@dataclass(frozen=True, slots=True)
class WrittenSegment:
    """A compacted segment that is durable, and for each of its extents those it was made of."""

    sequence: int
    segment_key: str
    byte_length: int
    level: int
    extents: tuple[Extent, ...]
    replaces: tuple[tuple[Extent, ...], ...]


class SegmentNames:
    """Numbers compacted segments within an agent epoch. One for a process."""

    def __init__(self, entropy: Entropy) -> None:
        self._writer = int.from_bytes(entropy.uuid_bytes()[:4], "big")
        self._agent_epoch = -1
        self._next = 0

    def next(self, agent_epoch: int) -> SegmentName:
        if agent_epoch != self._agent_epoch:
            self._agent_epoch, self._next = agent_epoch, COMPACTED_SEQUENCE_MIN
        name = SegmentName(agent_epoch, self._next, 0, self._writer)
        self._next += 1
        return name


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
        self._store = store
        self._names = names
        self._throttle = throttle
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
        data = await self._read(plan_reads(group))
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
        encoded = encode_compacted_segment(agent_epoch, name.sequence, self._clock.now_ms(), new_level, made)
        await self._throttle.spend(encoded.byte_length)
        await self._store.put(name.key, encoded.chunks, encoded.crc32c)
        self._metrics.bytes_written.inc(encoded.byte_length)
        self._metrics.segments_written.inc()
        extents = _extents(encoded, name.key, new_level)
        return WrittenSegment(name.sequence, name.key, encoded.byte_length, new_level, extents, tuple(sources))

    async def _read(self, ranges: Sequence[ReadRange]) -> dict[tuple[str, int], memoryview]:
        """The bytes of every extent of ``ranges``, by segment key and position; too few where an object ends early."""
        turns = asyncio.Semaphore(READS_AT_ONCE)
        found: dict[tuple[str, int], memoryview] = {}

        async def read(wanted: ReadRange) -> None:
            async with turns:
                await self._throttle.spend(wanted.length)
                view = memoryview(await self._store.get(wanted.segment_key, wanted.start, wanted.length))
            self._metrics.reads.inc()
            self._metrics.bytes_read.inc(len(view))
            for extent in wanted.extents:
                begin = extent.byte_position - wanted.start
                found[wanted.segment_key, extent.byte_position] = view[begin : begin + extent.byte_length]

        for outcome in await asyncio.gather(*map(read, ranges), return_exceptions=True):
            if outcome is not None:
                raise outcome
        return found

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


def _extents(encoded: EncodedCompactedSegment, segment_key: str, level: int) -> tuple[Extent, ...]:
    return tuple(
        Extent(
            each.topic_id,
            each.partition,
            each.base_offset,
            each.last_offset,
            segment_key,
            each.byte_position,
            each.byte_length,
            each.max_timestamp_ms,
            each.commit_ms,
            level,
        )
        for each in encoded.extents
    )
