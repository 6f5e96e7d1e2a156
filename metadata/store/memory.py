"""The metadata store in memory: the model the contract suite measures the others by, and runs that keep nothing.

"Durable" here means: kept for as long as this object lives. Opening it again is what a restart is to a real store.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from metadata.compaction import SegmentSummary
from metadata.group_model import GroupRecord, OffsetRecord
from metadata.model import EXTENTS_FOUND_MAX, DeletedTopic, Extent, Topic, TopicId
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    CallAnswered,
    CallsForgotten,
    Change,
    CompactedSegment,
    CounterSaved,
    DeadSegment,
    ExtentsAdded,
    ExtentsSwapped,
    GroupDropped,
    GroupSaved,
    LogStartMoved,
    OffsetRange,
    OffsetsDropped,
    OffsetsSaved,
    PartitionRow,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    SegmentsDropped,
    SegmentTotals,
    StoreSnapshot,
    StoreUnavailable,
    TopicDropped,
    TopicHidden,
    TopicRestored,
    TopicSaved,
)


class _Partition:
    """Extents in offset order, and the running maximum of their timestamps (it can be searched by halving)."""

    def __init__(self, producer_id_floor: int) -> None:
        self.producer_id_floor = producer_id_floor
        self.extents: list[Extent] = []
        self.timestamps_max: list[int] = []
        self.log_start_offset = 0
        self.high_watermark = 0

    def add(self, extent: Extent) -> None:
        self.extents.append(extent)
        self.timestamps_max.append(max(extent.max_timestamp_ms, self.max_timestamp_ms))
        self.high_watermark = extent.last_offset + 1

    def trim(self, count_max: int) -> list[Extent]:
        """Up to ``count_max`` extents that end below the log start; they are gone."""
        count = bisect_left(self.extents, self.log_start_offset, key=lambda extent: extent.last_offset)
        gone = self.extents[: min(count, count_max)]
        del self.extents[: len(gone)], self.timestamps_max[: len(gone)]
        return gone

    def inside(self, base_offset: int, last_offset: int) -> slice:
        """Where the extents are that begin in these offsets."""
        return slice(
            bisect_left(self.extents, base_offset, key=lambda extent: extent.base_offset),
            bisect_right(self.extents, last_offset, key=lambda extent: extent.base_offset),
        )

    def swap(self, extent: Extent) -> list[Extent]:
        """``extent`` takes the place of those in the same offsets; they are gone."""
        where = self.inside(extent.base_offset, extent.last_offset)
        gone = self.extents[where]
        self.extents[where] = [extent]
        self.timestamps_max[where] = [self.timestamps_max[where.stop - 1]]
        return gone

    @property
    def max_timestamp_ms(self) -> int:
        """Of what was added since the partition was last empty: an upper bound of what is left."""
        empty = self.log_start_offset == self.high_watermark or not self.timestamps_max
        return -1 if empty else self.timestamps_max[-1]


class _Segment:
    """A committed object, and how much of it is referenced."""

    def __init__(self, number: int, added: SegmentAdded | CompactedSegment) -> None:
        self.number = number
        self.added = added
        self.live_extents = 0
        self.live_bytes = 0
        self.dead_ms = added.commit_ms

    def reference(self, extent: Extent) -> None:
        self.live_extents += 1
        self.live_bytes += extent.byte_length
        self.dead_ms = 0

    def release(self, extent: Extent, now_ms: int) -> None:
        self.live_extents -= 1
        self.live_bytes -= extent.byte_length
        if self.live_extents == 0:
            self.dead_ms = now_ms


class MemoryMetadataStore:
    """Implements :class:`metadata.store.port.MetadataStore`; one event loop, no awaiting inside a write."""

    def __init__(self) -> None:
        self._cluster_id: str | None = None
        self._generation = 0
        self._topics: dict[TopicId, Topic] = {}
        self._hidden: dict[TopicId, int] = {}
        """Topics that were deleted and may come back, and when."""
        self._partitions: dict[tuple[TopicId, int], _Partition] = {}
        self._producers: dict[tuple[TopicId, int, int], ProducerSaved] = {}
        self._segments: dict[tuple[int, int], _Segment] = {}
        self._segments_by_key: dict[str, _Segment] = {}
        self._segment_number = 0
        self._dropped: list[Extent] = []
        """Extents of dropped topics, to be purged."""
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
        first = bisect_left(kept.extents, kept.log_start_offset, key=lambda extent: extent.last_offset)
        index = bisect_right(kept.timestamps_max, timestamp_ms - 1, first)
        return next((extent for extent in kept.extents[index:] if extent.max_timestamp_ms >= timestamp_ms), None)

    async def sum_extents(
        self, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
    ) -> tuple[int, int]:
        kept = self._partitions.get((topic_id, partition))
        extents = [] if kept is None else kept.extents
        first = bisect_left(extents, offset, key=lambda extent: extent.last_offset)
        part = [extent for extent in extents[first : first + row_max] if extent.base_offset < before_offset]
        end = part[-1].last_offset + 1 if len(part) == row_max else before_offset
        return sum(extent.byte_length for extent in part), end

    async def purge(self, row_max: int, now_ms: int) -> bool:
        gone, self._dropped = self._dropped[:row_max], self._dropped[row_max:]
        for partition in self._partitions.values():
            gone += partition.trim(row_max - len(gone))
        for extent in gone:
            self._segments_by_key[extent.segment_key].release(extent, now_ms)
        return len(gone) == row_max

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        dead = [
            DeadSegment(*key, segment.added.segment_key, segment.added.byte_length, segment.dead_ms)
            for key, segment in self._segments.items()
            if 0 < segment.dead_ms <= until_ms and key[1] not in self._answers.get(key[0], {})
        ]
        return sorted(dead, key=lambda segment: segment.dead_ms)[:count_max]

    async def find_segments(self, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        found = ((key, self._segments.get(key)) for key in segments)
        return {key: segment.added.segment_key for key, segment in found if segment is not None}

    async def segment_totals(self, after_id: int, row_max: int) -> SegmentTotals:
        segments = [segment for segment in self._segments.values() if segment.number > after_id][:row_max]
        dead = [segment.added.byte_length for segment in segments if segment.dead_ms]
        return SegmentTotals(
            len(segments),
            sum(segment.added.byte_length for segment in segments),
            sum(segment.live_bytes for segment in segments),
            len(dead),
            sum(dead),
            segments[-1].number if len(segments) == row_max else 0,
        )

    async def find_compactable(self, level: int, count_max: int) -> list[SegmentSummary]:
        found = [
            SegmentSummary(
                *key,
                segment.added.segment_key,
                segment.added.byte_length,
                level,
                segment.added.commit_ms,
                segment.live_extents,
                segment.live_bytes,
            )
            for key, segment in self._segments.items()
            if segment.added.level == level and not segment.dead_ms
        ]
        return sorted(found, key=lambda segment: segment.commit_ms)[:count_max]

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        keys = {self._segments[name].added.segment_key for name in segments if name in self._segments}
        return [
            extent
            for kept in self._partitions.values()
            for extent in kept.extents
            if extent.segment_key in keys and extent.last_offset >= kept.log_start_offset
        ]

    async def find_ranges(self, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
        found = []
        for topic_id, partition, base_offset, last_offset in ranges:
            kept = self._partitions.get((topic_id, partition))
            found.append([] if kept is None else kept.extents[kept.inside(base_offset, last_offset)])
        return found

    def _snapshot(self) -> StoreSnapshot:
        if self._cluster_id is None:
            raise StoreUnavailable("the memory store was not opened")
        return StoreSnapshot(
            self._cluster_id,
            tuple(topic for topic in self._topics.values() if topic.topic_id not in self._hidden),
            tuple(
                PartitionRow(
                    topic_id,
                    partition,
                    kept.log_start_offset,
                    kept.high_watermark,
                    kept.max_timestamp_ms,
                    kept.producer_id_floor,
                )
                for (topic_id, partition), kept in self._partitions.items()
            ),
            tuple(self._producers.values()),
            tuple(answer for answers in self._answers.values() for answer in answers.values()),
            tuple(self._agents.values()),
            dict(self._counters),
            tuple(self._groups.values()),
            {group_id: tuple(offsets.values()) for group_id, offsets in self._offsets.items() if offsets},
            tuple(self._calls.values()),
            tuple(DeletedTopic(self._topics[topic_id], deleted_ms) for topic_id, deleted_ms in self._hidden.items()),
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
            elif isinstance(change, ExtentsSwapped):
                self._check_swap(change)
            elif isinstance(change, LogStartMoved):
                key = (change.topic_id, change.partition)
                if key not in offsets and key in self._partitions:
                    offsets[key] = self._partitions[key].high_watermark
                if key not in offsets or change.log_start_offset > offsets[key]:
                    raise ValueError(f"log start above the high watermark: {change}")

    def _check_swap(self, change: ExtentsSwapped) -> None:
        """Of extents that were there before this write."""
        replaced = 0
        for extent in change.extents:
            kept = self._partitions.get((extent.topic_id, extent.partition))
            found = [] if kept is None else kept.extents[kept.inside(extent.base_offset, extent.last_offset)]
            if not found or found[0].base_offset != extent.base_offset:
                raise ValueError(f"nothing to take the place of: {extent}")
            replaced += len(found)
        if replaced != change.replaced_count:
            raise ValueError(f"{replaced} extents would be replaced, not {change.replaced_count}")

    def _swap(self, change: ExtentsSwapped) -> None:
        name = change.segment.agent_epoch, change.segment.sequence
        if name not in self._segments:
            self._segment_number += 1
            segment = _Segment(self._segment_number, change.segment)
            self._segments[name] = self._segments_by_key[change.segment.segment_key] = segment
        for extent in change.extents:
            for gone in self._partitions[extent.topic_id, extent.partition].swap(extent):
                self._segments_by_key[gone.segment_key].release(gone, change.swapped_ms)
            self._segments[name].reference(extent)

    def _apply(self, change: Change) -> None:
        match change:
            case ExtentsAdded(extents=extents):
                for extent in extents:
                    self._partitions[extent.topic_id, extent.partition].add(extent)
                    self._segments_by_key[extent.segment_key].reference(extent)
            case SegmentAdded():
                self._segment_number += 1
                segment = _Segment(self._segment_number, change)
                self._segments[change.agent_epoch, change.sequence] = segment
                self._segments_by_key[change.segment_key] = segment
                self._answers.setdefault(change.agent_epoch, {})[change.sequence] = change
            case ExtentsSwapped():
                self._swap(change)
            case SegmentsDropped(segments=segments):
                for each in segments:
                    if each in self._segments and self._segments[each].dead_ms:
                        del self._segments_by_key[self._segments.pop(each).added.segment_key]
            case LogStartMoved():
                moved = self._partitions[change.topic_id, change.partition]
                moved.log_start_offset = max(moved.log_start_offset, change.log_start_offset)
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
            case TopicHidden(topic_id=topic_id):
                if topic_id in self._topics:
                    self._hidden[topic_id] = change.deleted_ms
                    self._drop_offsets(topic_id)
            case TopicRestored(topic_id=topic_id):
                self._hidden.pop(topic_id, None)
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
        self._hidden.pop(topic_id, None)
        if topic is None:
            return
        for partition in range(topic.partition_count):
            self._dropped += self._partitions.pop((topic_id, partition)).extents
        self._producers = {key: saved for key, saved in self._producers.items() if key[0] != topic_id}
        self._drop_offsets(topic_id)

    def _drop_offsets(self, topic_id: TopicId) -> None:
        for offsets in self._offsets.values():
            for key in [key for key in offsets if key[0] == topic_id]:
                del offsets[key]
