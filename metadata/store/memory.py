"""The metadata store in memory: the model the contract suite measures the others by, and runs that keep nothing.

"Durable" here means: kept for as long as this object lives. Opening it again is what a restart is to a real store.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from metadata.group_model import GroupRecord, OffsetRecord
from metadata.model import EXTENTS_FOUND_MAX, Extent, Topic, TopicId
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    CallAnswered,
    CallsForgotten,
    Change,
    CounterSaved,
    ExtentsAdded,
    GroupDropped,
    GroupSaved,
    OffsetsDropped,
    OffsetsSaved,
    PartitionRow,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    StoreSnapshot,
    StoreUnavailable,
    TopicDropped,
    TopicSaved,
)


class _Partition:
    """Extents in offset order, and the running maximum of their timestamps (it can be searched by halving)."""

    def __init__(self, producer_id_floor: int) -> None:
        self.producer_id_floor = producer_id_floor
        self.extents: list[Extent] = []
        self.timestamps_max: list[int] = []
        self.high_watermark = 0

    def add(self, extent: Extent) -> None:
        self.extents.append(extent)
        self.timestamps_max.append(max(extent.max_timestamp_ms, self.max_timestamp_ms))
        self.high_watermark = extent.last_offset + 1

    @property
    def max_timestamp_ms(self) -> int:
        return self.timestamps_max[-1] if self.timestamps_max else -1


class MemoryMetadataStore:
    """Implements :class:`metadata.store.port.MetadataStore`; one event loop, no awaiting inside a write."""

    def __init__(self) -> None:
        self._cluster_id: str | None = None
        self._generation = 0
        self._topics: dict[TopicId, Topic] = {}
        self._partitions: dict[tuple[TopicId, int], _Partition] = {}
        self._producers: dict[tuple[TopicId, int, int], ProducerSaved] = {}
        self._segments: set[tuple[int, int]] = set()
        self._answers: dict[int, dict[int, SegmentAdded]] = {}
        self._agents: dict[str, AgentSaved] = {}
        self._calls: dict[str, CallAnswered] = {}
        self._counters: dict[str, int] = {}
        self._groups: dict[str, GroupRecord] = {}
        self._offsets: dict[str, dict[tuple[TopicId, int], OffsetRecord]] = {}

    async def lead(self) -> int:
        self._generation += 1
        return self._generation

    async def renew(self) -> None:
        return None

    def sure(self) -> bool:
        return True

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        if self._cluster_id is None:
            self._cluster_id = new_cluster_id
        return self._snapshot()

    async def reload(self) -> StoreSnapshot:
        return self._snapshot()

    async def close(self) -> None:
        return None

    async def write(self, changes: Sequence[Change]) -> None:
        self._check(changes)
        for change in changes:
            self._apply(change)

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        kept = self._partitions.get((topic_id, partition))
        found: list[Extent] = []
        if kept is None:
            return found
        byte_count = 0
        start = bisect_left(kept.extents, offset, key=lambda extent: extent.last_offset)
        for index in range(start, len(kept.extents)):
            extent = kept.extents[index]
            if extent.base_offset >= before_offset or (found and byte_count >= byte_max):
                break
            if len(found) == EXTENTS_FOUND_MAX:
                break
            found.append(extent)
            byte_count += extent.byte_length
        return found

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        kept = self._partitions.get((topic_id, partition))
        if kept is None:
            return None
        index = bisect_right(kept.timestamps_max, timestamp_ms - 1)
        return kept.extents[index] if index < len(kept.extents) else None

    def _snapshot(self) -> StoreSnapshot:
        if self._cluster_id is None:
            raise StoreUnavailable("the memory store was not opened")
        return StoreSnapshot(
            self._cluster_id,
            tuple(self._topics.values()),
            tuple(
                PartitionRow(topic_id, partition, 0, kept.high_watermark, kept.max_timestamp_ms, kept.producer_id_floor)
                for (topic_id, partition), kept in self._partitions.items()
            ),
            tuple(self._producers.values()),
            tuple(answer for answers in self._answers.values() for answer in answers.values()),
            tuple(self._agents.values()),
            dict(self._counters),
            tuple(self._groups.values()),
            {group_id: tuple(offsets.values()) for group_id, offsets in self._offsets.items() if offsets},
            tuple(self._calls.values()),
        )

    def _check(self, changes: Sequence[Change]) -> None:
        """All or nothing: whatever the changes may not do is found before the first one is applied."""
        segments = {change.segment_key for change in changes if isinstance(change, SegmentAdded)}
        offsets: dict[tuple[TopicId, int], int] = {}
        for change in changes:
            if isinstance(change, TopicSaved):
                for partition in range(change.topic.partition_count):
                    key = (change.topic.topic_id, partition)
                    if key not in self._partitions:
                        offsets[key] = 0
            elif isinstance(change, SegmentAdded) and (change.agent_epoch, change.sequence) in self._segments:
                raise ValueError(f"segment {change.agent_epoch}/{change.sequence} was added before")
            elif isinstance(change, ExtentsAdded):
                for extent in change.extents:
                    key = (extent.topic_id, extent.partition)
                    if key not in offsets and key in self._partitions:
                        offsets[key] = self._partitions[key].high_watermark
                    if extent.segment_key not in segments or offsets.get(key) != extent.base_offset:
                        raise ValueError(f"extent does not follow: {extent}")
                    offsets[key] = extent.last_offset + 1

    def _apply(self, change: Change) -> None:
        match change:
            case ExtentsAdded(extents=extents):
                for extent in extents:
                    self._partitions[extent.topic_id, extent.partition].add(extent)
            case SegmentAdded():
                self._segments.add((change.agent_epoch, change.sequence))
                self._answers.setdefault(change.agent_epoch, {})[change.sequence] = change
            case AnswersSettled():
                answers = self._answers.get(change.agent_epoch, {})
                for sequence in [sequence for sequence in answers if sequence <= change.sequence]:
                    del answers[sequence]
            case ProducerSaved():
                self._producers[change.topic_id, change.partition, change.producer_id] = change
            case ProducersExpired(producers=producers):
                for topic_id, partition, producer_id in producers:
                    self._producers.pop((topic_id, partition, producer_id), None)
                    expired_at = self._partitions.get((topic_id, partition))
                    if expired_at is not None:
                        expired_at.producer_id_floor = max(expired_at.producer_id_floor, producer_id + 1)
            case TopicSaved(topic=topic):
                self._topics[topic.topic_id] = topic
                for partition in range(topic.partition_count):
                    self._partitions.setdefault((topic.topic_id, partition), _Partition(change.producer_id_floor))
            case TopicDropped(topic_id=topic_id):
                self._drop_topic(topic_id)
            case AgentSaved():
                self._agents[change.agent_uid] = change
            case AgentDropped(agent_uid=agent_uid):
                self._agents.pop(agent_uid, None)
            case CallAnswered():
                self._calls[change.call_id] = change
            case CallsForgotten(before_ms=before_ms):
                self._calls = {key: call for key, call in self._calls.items() if call.answered_ms >= before_ms}
            case CounterSaved():
                self._counters[change.name] = max(change.value, self._counters.get(change.name, 0))
            case GroupSaved(record=record):
                self._groups[record.group_id] = record
            case GroupDropped(group_id=group_id):
                self._groups.pop(group_id, None)
                self._offsets.pop(group_id, None)
            case OffsetsSaved():
                kept = self._offsets.setdefault(change.group_id, {})
                for offset in change.offsets:
                    if (offset.topic_id, offset.partition) in self._partitions:
                        kept[offset.topic_id, offset.partition] = offset
            case OffsetsDropped():
                kept = self._offsets.get(change.group_id, {})
                for partition_key in change.partitions:
                    kept.pop(partition_key, None)

    def _drop_topic(self, topic_id: TopicId) -> None:
        topic = self._topics.pop(topic_id, None)
        if topic is None:
            return
        for partition in range(topic.partition_count):
            self._partitions.pop((topic_id, partition), None)
        self._producers = {key: saved for key, saved in self._producers.items() if key[0] != topic_id}
        for offsets in self._offsets.values():
            for key in [key for key in offsets if key[0] == topic_id]:
                del offsets[key]
