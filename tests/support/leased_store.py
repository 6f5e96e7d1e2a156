"""A metadata store in memory that several processes share: generations, leases, deposed leaders, as on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from metadata.compaction import SegmentSummary
from metadata.model import Extent, TopicId
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import (
    Change,
    DeadSegment,
    Deposed,
    OffsetRange,
    SegmentTotals,
    StoreSnapshot,
    StoreUnavailable,
)


class SharedDatabase:
    """What all sessions see."""

    def __init__(self, lease_seconds: float) -> None:
        self.store = MemoryMetadataStore()
        self.lease_seconds = lease_seconds
        self.generation = 0
        self.holder: LeasedStore | None = None
        self.renewals = 0
        self.reachable = True


class LeasedStore:
    """One process's session. ``cut``: it reaches nothing, though the database may be well."""

    def __init__(self, database: SharedDatabase) -> None:
        self._database = database
        self._generation = -1
        self.cut = False
        self.slow_seconds = 0.0
        """Each renewal takes so long."""

    async def lead(self) -> int:
        database = self._database
        seen, since = -1, time.monotonic()
        while True:
            self._check_reachable()
            if database.renewals != seen:
                seen, since = database.renewals, time.monotonic()
            if database.holder is None or time.monotonic() - since > database.lease_seconds:
                break
            await asyncio.sleep(0.02)
        database.holder = self
        database.renewals += 1
        database.generation += 1
        self._generation = database.generation
        return self._generation

    async def renew(self) -> None:
        await asyncio.sleep(self.slow_seconds)
        self._check()
        self._database.renewals += 1

    def sure(self) -> bool:
        """No session ends here without being asked: only a renewal tells."""
        return True

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        self._check()
        return await self._database.store.open(new_cluster_id)

    async def write(self, changes: Sequence[Change]) -> None:
        await asyncio.sleep(0.001)
        self._check()
        await self._database.store.write(changes)

    async def reload(self) -> StoreSnapshot:
        self._check()
        return await self._database.store.reload()

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        self._check_reachable()
        return await self._database.store.find_extents(topic_id, partition, offset, byte_max, before_offset)

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        self._check_reachable()
        return await self._database.store.find_extent_by_timestamp(topic_id, partition, timestamp_ms)

    async def sum_extents(
        self, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
    ) -> tuple[int, int]:
        self._check_reachable()
        return await self._database.store.sum_extents(topic_id, partition, offset, before_offset, row_max)

    async def purge(self, row_max: int, now_ms: int) -> bool:
        self._check()
        return await self._database.store.purge(row_max, now_ms)

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        self._check_reachable()
        return await self._database.store.find_dead_segments(until_ms, count_max)

    async def find_segments(self, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        self._check_reachable()
        return await self._database.store.find_segments(segments)

    async def find_compactable(self, level: int, count_max: int) -> list[SegmentSummary]:
        return await self._database.store.find_compactable(level, count_max)

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        return await self._database.store.find_segment_extents(segments)

    async def find_ranges(self, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
        return await self._database.store.find_ranges(ranges)

    async def segment_totals(self, after_id: int, row_max: int) -> SegmentTotals:
        self._check_reachable()
        return await self._database.store.segment_totals(after_id, row_max)

    async def close(self) -> None:
        if self._database.holder is self and not self.cut:
            self._database.holder = None

    def _check_reachable(self) -> None:
        if self.cut or not self._database.reachable:
            raise StoreUnavailable("planted: the database cannot be reached")

    def _check(self) -> None:
        self._check_reachable()
        if self._generation != self._database.generation:
            raise Deposed(f"generation {self._database.generation} leads, not {self._generation}")
