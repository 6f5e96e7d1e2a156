"""Cuts logs by age and size, as :mod:`metadata.retention` decides. Reads beside the commits; only the new log start
goes through the pipeline.

A look at a partition costs nothing until something in it is due: when its oldest extent will be too old is remembered,
and its size is counted once, then kept up with what is committed and what goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from metadata.metrics import MetadataMetrics
from metadata.model import Extent, MetadataUnavailable, Topic, TopicId
from metadata.pipeline import CommandPipeline, Transaction
from metadata.retention import RetentionPolicy, Verdict, judge, retention_policy
from metadata.store.port import MetadataStore, StoreUnavailable
from metadata.visible import VisibleIndex, VisiblePartition
from runtime.clock import Clock
from runtime.settings import LifecycleSettings
from runtime.tasks import Supervisor

COUNTED_ROWS = 20_000
"""Extents added up in one read."""
RECOUNT_MS = 600_000
"""The size of a topic that is compacted too is counted anew after this."""
PARTITIONS_AT_ONCE = 1_000
"""Looked at before others get their turn."""
_UNBOUNDED = 2**62

_log = structlog.get_logger("tidelog.metadata.retention")

Key = tuple[TopicId, int]


@dataclass(slots=True)
class _Known:
    """Of a partition: when its oldest extent is due (wall clock), and its bytes (-1: not counted yet)."""

    due_ms: int = 0
    size_bytes: int = -1
    counted_ms: int = 0


class Retention:
    """One look at every partition after the other. ``move(topic_id, partition, offset, transaction)`` decides a new
    log start. Soft state: :meth:`reset` when what is visible was built anew."""

    def __init__(
        self,
        store: MetadataStore,
        pipeline: CommandPipeline,
        clock: Clock,
        settings: LifecycleSettings,
        metrics: MetadataMetrics,
        visible: Callable[[], VisibleIndex],
        move: Callable[[TopicId, int, int, Transaction], object],
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._clock = clock
        self._interval_seconds = settings.retention_interval_ms / 1000
        self._metrics = metrics
        self._visible = visible
        self._move = move
        self._known: dict[Key, _Known] = {}
        self._sized: dict[Key, _Known] = {}
        """Those whose bytes are kept up."""

    def start(self, supervisor: Supervisor) -> None:
        supervisor.start("metadata-retention", self._run())

    def reset(self) -> None:
        """What was known may have missed something."""
        self._known, self._sized = {}, {}

    def topic_changed(self, topic: Topic) -> None:
        """Its limits may have, or it is gone."""
        for partition in range(topic.partition_count):
            self._forget((topic.topic_id, partition))

    def extents_committed(self, extents: Iterable[Extent]) -> None:
        """On every commit: nothing at all where no topic is limited by size."""
        sized = self._sized
        if sized:
            for extent in extents:
                known = sized.get((extent.topic_id, extent.partition))
                if known is not None:
                    known.size_bytes += extent.byte_length

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._interval_seconds)
            try:
                await self._look()
            except (StoreUnavailable, MetadataUnavailable) as error:
                _log.warning("retention_postponed", error=str(error))

    async def _look(self) -> None:
        looked = 0
        for topic in list(self._visible().topics.values()):
            policy = retention_policy(topic.configs)
            if policy.keeps_all:
                continue
            for partition in range(topic.partition_count):
                looked += 1
                if looked % PARTITIONS_AT_ONCE == 0:
                    await self._clock.sleep(0)
                await self._look_at(topic.topic_id, partition, policy)

    async def _look_at(self, topic_id: TopicId, number: int, policy: RetentionPolicy) -> None:
        key, now_ms = (topic_id, number), self._clock.now_ms()
        partition = self._visible().partition(topic_id, number)
        if partition is None or partition.log_start_offset == partition.high_watermark:
            self._forget(key)
            return
        known = self._known.setdefault(key, _Known())
        if policy.retention_bytes >= 0:
            stale = policy.compacted and now_ms - known.counted_ms >= RECOUNT_MS
            if known.size_bytes < 0 or stale:
                await self._count(key, known, partition)
        if known.due_ms > now_ms and not 0 <= policy.retention_bytes < known.size_bytes:
            return
        await self._cut(key, known, policy)

    async def _count(self, key: Key, known: _Known, partition: VisiblePartition) -> None:
        """What is committed meanwhile is added by :meth:`extents_committed`."""
        known.size_bytes, known.counted_ms = 0, self._clock.now_ms()
        self._sized[key] = known
        offset, end = partition.log_start_offset, partition.high_watermark
        try:
            while offset < end:
                size, offset = await self._store.sum_extents(*key, offset, end, COUNTED_ROWS)
                known.size_bytes += size
        except BaseException:
            self._forget(key)
            raise

    async def _cut(self, key: Key, known: _Known, policy: RetentionPolicy) -> None:
        """Look at the oldest extents, one and then some more, until one stays."""
        byte_max = 1
        while self._known.get(key) is known:
            partition = self._visible().partition(*key)
            if partition is None:
                return
            oldest = await self._store.find_extents(
                *key, partition.log_start_offset, byte_max, partition.high_watermark
            )
            byte_max = _UNBOUNDED
            verdict = judge(policy, oldest, known.size_bytes, self._clock.now_ms())
            if self._known.get(key) is not known:
                return
            known.due_ms = verdict.due_ms if verdict.complete else 0
            if verdict.log_start_offset is not None and verdict.log_start_offset > partition.log_start_offset:
                await self._pipeline.run(self._decide(key, verdict))
                known.size_bytes = max(known.size_bytes - verdict.freed_bytes, 0) if known.size_bytes >= 0 else -1
                self._metrics.retention_bytes.inc(verdict.freed_bytes)
            if verdict.complete or not oldest:
                return

    def _decide(self, key: Key, verdict: Verdict) -> Callable[[Transaction], object]:
        assert verdict.log_start_offset is not None
        offset = verdict.log_start_offset
        return lambda transaction: self._move(*key, offset, transaction)

    def _forget(self, key: Key) -> None:
        self._known.pop(key, None)
        self._sized.pop(key, None)
