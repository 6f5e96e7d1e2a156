"""Compacted segments on their way into the object store: their names, and the put."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ingest.compacted_segment import PlacedExtent, encode_compacted_segment
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.throttle import Throttle
from ingest.segment import SegmentName
from metadata.job_model import COMPACTED_SEQUENCE_MIN
from metadata.model import Extent
from runtime.clock import Clock, Entropy
from storage.store import ObjectStore


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


class CompactedWriter:
    """Puts compacted segments, at the pace that compaction is allowed."""

    def __init__(self, store: ObjectStore, throttle: Throttle, clock: Clock, metrics: CompactionMetrics) -> None:
        self._store = store
        self._throttle = throttle
        self._clock = clock
        self._metrics = metrics

    async def write(
        self, name: SegmentName, level: int, made: Sequence[PlacedExtent], sources: Sequence[tuple[Extent, ...]]
    ) -> WrittenSegment:
        """The segment of ``made``, durable. :raises storage.store.StorageError:"""
        encoded = encode_compacted_segment(name.agent_epoch, name.sequence, self._clock.now_ms(), level, made)
        await self._throttle.spend(encoded.byte_length)
        await self._store.put(name.key, encoded.chunks, encoded.crc32c)
        self._metrics.bytes_written.inc(encoded.byte_length)
        self._metrics.segments_written.inc()
        extents = tuple(
            Extent(
                each.topic_id,
                each.partition,
                each.base_offset,
                each.last_offset,
                name.key,
                each.byte_position,
                each.byte_length,
                each.max_timestamp_ms,
                each.commit_ms,
                level,
            )
            for each in encoded.extents
        )
        return WrittenSegment(name.sequence, name.key, encoded.byte_length, level, extents, tuple(sources))
