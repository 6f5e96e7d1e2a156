"""The offsets one consumer group committed, in memory. Pure.

Nested by topic, so that a deleted topic's offsets go in one step. Counted in bytes, so that they can be bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from metadata.group_model import OffsetRecord
from metadata.model import TopicId

OFFSET_BYTES = 320
"""What an offset takes besides its metadata: the record, its numbers and its places in two dicts."""


class CommittedOffsets:
    """Offsets by topic id and partition; the last commit of a partition counts."""

    def __init__(self, records: Iterable[OffsetRecord] = ()) -> None:
        self._topics: dict[TopicId, dict[int, OffsetRecord]] = {}
        self.held_bytes = 0
        self._count = 0
        self.put(records)

    def __bool__(self) -> bool:
        return bool(self._topics)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[OffsetRecord]:
        for partitions in self._topics.values():
            yield from partitions.values()

    def put(self, records: Iterable[OffsetRecord]) -> None:
        for record in records:
            partitions = self._topics.setdefault(record.topic_id, {})
            self._count_out(partitions.get(record.partition))
            partitions[record.partition] = record
            self._count += 1
            self.held_bytes += _held_bytes(record)

    def growth_bytes(self, records: Iterable[OffsetRecord]) -> int:
        """How much :meth:`put` would add to ``held_bytes``, or more where ``records`` name a partition twice."""
        growth = 0
        for record in records:
            kept = self._topics.get(record.topic_id, {}).get(record.partition)
            growth += _held_bytes(record) - (0 if kept is None else _held_bytes(kept))
        return growth

    def find(self, partitions: Sequence[tuple[TopicId, int]] | None) -> list[OffsetRecord]:
        """Those of ``partitions`` (None: all) that have a committed offset."""
        if partitions is None:
            return list(self)
        nothing: dict[int, OffsetRecord] = {}
        found = (self._topics.get(topic_id, nothing).get(partition) for topic_id, partition in partitions)
        return [record for record in found if record is not None]

    def forget_topic(self, topic_id: TopicId) -> None:
        for record in self._topics.pop(topic_id, {}).values():
            self._count_out(record)

    def drop(self, partitions: Iterable[tuple[TopicId, int]]) -> None:
        for topic_id, partition in partitions:
            kept = self._topics[topic_id]
            self._count_out(kept.pop(partition))
            if not kept:
                del self._topics[topic_id]

    def expired(self, until_ms: int, count_max: int) -> tuple[tuple[TopicId, int], ...]:
        """At most ``count_max`` partitions that were last committed then or earlier."""
        matching = ((record.topic_id, record.partition) for record in self if record.commit_ms <= until_ms)
        return tuple(islice(matching, count_max))

    def oldest_commit_ms(self) -> int | None:
        return min((record.commit_ms for record in self), default=None)

    def _count_out(self, record: OffsetRecord | None) -> None:
        if record is not None:
            self._count -= 1
            self.held_bytes -= _held_bytes(record)


def _held_bytes(record: OffsetRecord) -> int:
    return OFFSET_BYTES + len(record.metadata)
