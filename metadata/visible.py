"""What readers see: topics, offsets and the newest extents, moved only by what is durable. Pure.

Older extents are in the store. The newest ones of all partitions together are bounded; the oldest commit's go first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable

from metadata.model import EXTENTS_FOUND_MAX, Extent, LogStart, Topic, TopicId, TopicsChanged
from metadata.store.port import StoreSnapshot

NEWEST_EXTENTS_MAX = 50_000
"""Extents held in memory, of all partitions together: about 300 bytes each, 15 MB."""


def _base_offset(extent: Extent) -> int:
    return extent.base_offset


class VisiblePartition:
    """A partition's durable offsets and its newest extents, which end at the high watermark without a gap."""

    __slots__ = ("high_watermark", "log_start_offset", "max_timestamp_ms", "newest")

    def __init__(self, log_start_offset: int = 0, high_watermark: int = 0, max_timestamp_ms: int = -1) -> None:
        self.log_start_offset = log_start_offset
        self.high_watermark = high_watermark
        self.max_timestamp_ms = max_timestamp_ms
        self.newest: deque[Extent] = deque()

    @property
    def newest_offset(self) -> int:
        """From here on extents are in memory; the high watermark when none is."""
        return self.newest[0].base_offset if self.newest else self.high_watermark

    def find(self, offset: int, byte_max: int, count_max: int = EXTENTS_FOUND_MAX) -> list[Extent] | None:
        """Extents from the one that holds ``offset`` on, until they sum to ``byte_max``; None: memory begins later."""
        newest = self.newest
        if not newest or offset < newest[0].base_offset:
            return None
        if offset >= newest[-1].base_offset:  # where a consumer that keeps up always is
            return [newest[-1]] if offset < self.high_watermark else []
        found: list[Extent] = []
        byte_count = 0
        for index in range(bisect_right(newest, offset, key=_base_offset) - 1, len(newest)):
            extent = newest[index]
            found.append(extent)
            byte_count += extent.byte_length
            if byte_count >= byte_max or len(found) == count_max:
                break
        return found


class VisibleIndex:
    """Every topic and partition as readers see them. One event loop."""

    def __init__(self, snapshot: StoreSnapshot, extents_max: int = NEWEST_EXTENTS_MAX) -> None:
        self.topics: dict[TopicId, Topic] = {}
        self.partition_count = 0
        self._partitions: dict[TopicId, list[VisiblePartition]] = {}
        self._extents_max = extents_max
        self._order: deque[VisiblePartition] = deque()
        """The partition of each extent in memory, oldest commit first."""
        self._hidden: dict[TopicId, list[VisiblePartition]] = {
            deleted.topic.topic_id: [VisiblePartition() for _ in range(deleted.topic.partition_count)]
            for deleted in snapshot.deleted_topics
        }
        """Of deleted topics that may come back: nobody sees them, and nothing is written to them."""
        for topic in snapshot.topics:
            self.put_topic(topic)
        for row in snapshot.partitions:
            partitions = self._hidden.get(row.topic_id) or self._partitions[row.topic_id]
            partition = partitions[row.partition]
            partition.log_start_offset = row.log_start_offset
            partition.high_watermark = row.high_watermark
            partition.max_timestamp_ms = row.max_timestamp_ms

    @property
    def extent_count(self) -> int:
        """Extents in memory (those of deleted topics are counted until their turn to go comes)."""
        return len(self._order)

    def partition(self, topic_id: TopicId, partition: int) -> VisiblePartition | None:
        partitions = self._partitions.get(topic_id)
        if partitions is None or not 0 <= partition < len(partitions):
            return None
        return partitions[partition]

    def put_topic(self, topic: Topic) -> None:
        """A topic is there, or back, its configs changed, or it has more partitions."""
        kept = self._hidden.pop(topic.topic_id, None)
        if kept is not None:
            self._partitions[topic.topic_id] = kept
            self.partition_count += len(kept)
        partitions = self._partitions.setdefault(topic.topic_id, [])
        additional = topic.partition_count - len(partitions)
        partitions += [VisiblePartition() for _ in range(additional)]
        self.partition_count += additional
        self.topics[topic.topic_id] = topic

    def drop_topic(self, topic_id: TopicId, hidden: bool = False) -> None:
        """``hidden``: it may come back, by :meth:`put_topic`."""
        if topic_id not in self.topics:
            self._hidden.pop(topic_id, None)
            return
        if hidden:
            self._hidden[topic_id] = self._partitions[topic_id]
        topic = self.topics.pop(topic_id)
        self.partition_count -= topic.partition_count
        for partition in self._partitions.pop(topic_id):
            partition.newest.clear()

    def add_extents(self, extents: Iterable[Extent]) -> None:
        """Extents that became durable, in commit order; those of a topic deleted meanwhile are left out."""
        order = self._order
        for extent in extents:
            partitions = self._partitions.get(extent.topic_id)
            if partitions is None:
                continue
            partition = partitions[extent.partition]
            assert extent.base_offset == partition.high_watermark, "extents become visible densely, in order"
            partition.newest.append(extent)
            partition.high_watermark = extent.last_offset + 1
            if extent.max_timestamp_ms > partition.max_timestamp_ms:
                partition.max_timestamp_ms = extent.max_timestamp_ms
            order.append(partition)
        while len(order) > self._extents_max:
            oldest = order.popleft()
            if oldest.newest:
                oldest.newest.popleft()

    def swap_extents(self, extents: Iterable[Extent]) -> None:
        """Extents that took the place of others: what is in memory of those, and before them, is in the store only."""
        for extent in extents:
            partition = self.partition(extent.topic_id, extent.partition)
            if partition is not None:
                newest = partition.newest
                while newest and newest[0].base_offset <= extent.last_offset:
                    newest.popleft()

    def move_log_start(self, moved: LogStart) -> None:
        """Records became unreadable, durably. Their extents stay where they are: nobody asks for them."""
        partition = self.partition(moved.topic_id, moved.partition)
        if partition is not None:
            partition.log_start_offset = max(partition.log_start_offset, moved.log_start_offset)
            if partition.log_start_offset == partition.high_watermark:
                partition.max_timestamp_ms = -1

    def changes_since(self, earlier: VisibleIndex) -> TopicsChanged:
        """What happened to the topics between ``earlier`` and this index."""
        return TopicsChanged(
            tuple(topic for topic in self.topics.values() if earlier.topics.get(topic.topic_id) != topic),
            tuple(topic_id for topic_id in earlier.topics if topic_id not in self.topics),
        )
