"""Compacting a partition by key: what is dirty, the map of its keys, and the log without what they have made old.

As Kafka's cleaner: the keys of the *dirty* part (behind what was cleaned before) are read into a map of last offsets,
as many as have room; then everything up to the map's end is written again without the records that later ones replace.
Segments must be swapped in their order, and nothing more once one was refused: a tombstone may only go when what it
deletes, which comes before it, has gone.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Iterator, Sequence

import structlog

from ingest.batch_header import LENGTH_OVERHEAD, MalformedRecords
from ingest.compacted_segment import PlacedExtent
from ingest.compaction.clean import ENTRY_BYTES, OffsetMap, Rules, clean_batch, empty_batch
from ingest.compaction.layout import Joined, plan_reads
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.place import Placer
from ingest.compaction.read import ExtentReader
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import CompactedWriter, SegmentNames, WrittenSegment
from ingest.compression import EXPANDED_BYTES_MAX, iterate_records
from ingest.segment_ending import SegmentCorrupt
from metadata.compaction import CLEANED_LEVEL, EXTENT_BYTES_MAX, SWAPPED_EXTENTS_MAX, CleanJob
from metadata.model import Extent
from runtime.budget import Budget
from runtime.clock import Clock
from storage.store import Chunk, ObjectStore

_log = structlog.get_logger("tidelog.compaction")

PURPOSE = "compaction"
KEYS_MAX = 400_000
"""In one map; what has no room is cleaned the next time."""
KEYS_BUDGET_SHARE = 8
"""The map takes at most this part of the agent's memory."""
WINDOW_BYTES = 16 << 20
"""Extents read at a time."""
BUDGET_PAUSE_SECONDS = 0.2

_OFFSET_AND_LENGTH = struct.Struct(">qi")
_LAST_DELTA_POSITION = 23


def dirty_from(extents: Sequence[Extent]) -> int:
    """The index of the first extent that was not cleaned."""
    return next((index for index, each in enumerate(extents) if each.level != CLEANED_LEVEL), len(extents))


def cleanable(extents: Sequence[Extent], job: CleanJob, now_ms: int) -> Sequence[Extent]:
    """The extents of a partition, from its log start on, as far as they are to be cleaned now; empty: not now.

    Kafka's ``LogCleanerManager.grabFilthiestCompactedLog``: enough of it dirty, or something dirty for too long.
    """
    begin = dirty_from(extents)
    end = begin
    while end < len(extents):
        extent = extents[end]
        young = extent.max_timestamp_ms > now_ms - job.lag_ms_min if job.lag_ms_min else False
        if young or extent.commit_ms > now_ms - job.age_ms_min:
            break
        end += 1
    dirty = sum(extent.byte_length for extent in extents[begin:end])
    clean = sum(extent.byte_length for extent in extents[:begin])
    overdue = any(extent.max_timestamp_ms < now_ms - job.lag_ms_max for extent in extents[begin:end])
    if not dirty or (dirty < job.dirty_ratio_min * (dirty + clean) and not overdue):
        return ()
    return extents[:end]


class Cleaner:
    """Cleans for one agent, one partition at a time."""

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
        self._keys_max = min(KEYS_MAX, budget.limit_bytes // KEYS_BUDGET_SHARE // ENTRY_BYTES)

    async def clean(
        self, extents: Sequence[Extent], job: CleanJob, agent_epoch: int
    ) -> AsyncGenerator[WrittenSegment, None]:
        """Segments that take the place of ``extents`` (:func:`cleanable`), each as soon as it is durable.

        :raises storage.store.StorageError:
        :raises ValueError: bytes of an extent are damaged, or it has too many keys; what came before may be swapped.
        """
        held = self._keys_max * ENTRY_BYTES + 2 * self._segment_bytes_max
        while self._budget.exhausted:
            await self._clock.sleep(BUDGET_PAUSE_SECONDS)
        self._budget.take(PURPOSE, held)
        try:
            offsets = await self._map(extents[dirty_from(extents) :])
            rules = Rules(self._clock.now_ms(), job.delete_retention_ms)
            reached = [extent for extent in extents if extent.last_offset <= offsets.end_offset]
            if dirty_from(reached) == len(reached):
                raise ValueError(f"more than {self._keys_max} keys in one extent: {extents[len(reached)]}")
            made: list[PlacedExtent] = []
            sources: list[tuple[Extent, ...]] = []
            async for placed, source in self._cleaned(reached, offsets, rules):
                made.append(placed)
                sources.append(source)
                if sum(each.byte_length for each in made) >= self._segment_bytes_max:
                    yield await self._writer.write(self._names.next(agent_epoch), CLEANED_LEVEL, made, sources)
                    made, sources = [], []
            if made:
                yield await self._writer.write(self._names.next(agent_epoch), CLEANED_LEVEL, made, sources)
        finally:
            self._budget.give(PURPOSE, held)

    async def _map(self, dirty: Sequence[Extent]) -> OffsetMap:
        """Of whole extents, as many as have room."""
        offsets = OffsetMap(self._keys_max)
        async for _, batches in self._read(dirty):
            for batch in batches:
                if not await asyncio.to_thread(_add, offsets, batch):
                    return offsets
        return offsets

    async def _cleaned(
        self, extents: Sequence[Extent], offsets: OffsetMap, rules: Rules
    ) -> AsyncGenerator[tuple[PlacedExtent, tuple[Extent, ...]], None]:
        """Extents that touch, as one, up to a size, and what they were made of."""
        placed: PlacedExtent | None = None
        source: list[Extent] = []
        async for extent, batches in self._read(extents):
            if placed is None:
                placed = PlacedExtent(extent.topic_id, extent.partition, extent.base_offset)
            source.append(extent)
            placed.last_offset = extent.last_offset
            placed.max_timestamp_ms = max(placed.max_timestamp_ms, extent.max_timestamp_ms)
            placed.commit_ms = max(placed.commit_ms, extent.commit_ms)
            for batch in batches:
                cleaned = await asyncio.to_thread(_clean, batch, offsets, rules)
                if cleaned is not None:
                    placed.chunks.append(cleaned)
                    placed.byte_length += len(cleaned)
                    placed.batch_count += 1
            if placed.byte_length >= EXTENT_BYTES_MAX or len(source) == SWAPPED_EXTENTS_MAX:
                yield _ended(placed), tuple(source)
                placed, source = None, []
        if placed is not None:
            yield _ended(placed), tuple(source)

    async def _read(self, extents: Sequence[Extent]) -> AsyncGenerator[tuple[Extent, list[bytes]], None]:
        """Each extent's batches, with their offsets."""
        for window in _windows(extents):
            data = await self._reader.read(plan_reads([Joined((extent,), extent.byte_length) for extent in window]))
            for extent in window:
                placer = Placer(extent, data.pop((extent.segment_key, extent.byte_position)))
                try:
                    for _ in placer.steps():
                        await asyncio.sleep(0)
                except SegmentCorrupt as error:
                    self._metrics.corrupt.inc()
                    raise ValueError(str(error)) from error
                yield extent, list(_batches(b"".join(placer.chunks)))


def _windows(extents: Sequence[Extent]) -> Iterator[Sequence[Extent]]:
    begin = byte_length = 0
    for index, extent in enumerate(extents):
        if byte_length and byte_length + extent.byte_length > WINDOW_BYTES:
            yield extents[begin:index]
            begin, byte_length = index, 0
        byte_length += extent.byte_length
    if begin < len(extents):
        yield extents[begin:]


def _batches(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        _, length = _OFFSET_AND_LENGTH.unpack_from(data, position)
        end = position + length + LENGTH_OVERHEAD
        yield data[position:end]
        position = end


def _span(batch: Chunk) -> tuple[int, int]:
    """First and last offset of a batch."""
    (base_offset,) = struct.unpack_from(">q", batch)
    (last_delta,) = struct.unpack_from(">i", batch, _LAST_DELTA_POSITION)
    return base_offset, base_offset + last_delta


def _add(offsets: OffsetMap, batch: bytes) -> bool:
    base_offset, last_offset = _span(batch)
    try:
        records = list(iterate_records(batch, EXPANDED_BYTES_MAX, dense=False))
    except MalformedRecords:
        records = []  # nobody can read them; the batch stays as it is
    return offsets.add(base_offset, last_offset, records)


def _clean(batch: bytes, offsets: OffsetMap, rules: Rules) -> Chunk | None:
    try:
        return clean_batch(batch, offsets, rules, EXPANDED_BYTES_MAX)
    except MalformedRecords as error:
        _log.warning("batch_not_cleaned", offset=_span(batch)[0], reason=str(error))
        return batch


def _ended(placed: PlacedExtent) -> PlacedExtent:
    """The last batch of an extent ends where it ends: where it went, an empty one stands for it."""
    next_offset = _span(placed.chunks[-1])[1] + 1 if placed.chunks else placed.base_offset
    if next_offset <= placed.last_offset:
        batch = empty_batch(next_offset, placed.last_offset)
        placed.chunks.append(batch)
        placed.byte_length += len(batch)
        placed.batch_count += 1
    return placed
