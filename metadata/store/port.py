"""The metadata store port: one durable, atomic write of the changes a batch of commands decided.

``metadata.state`` and ``metadata.groups`` decide; a store only remembers. SQL lives in the implementations.
One contract suite (``tests/contract``) runs against each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from metadata.group_model import GroupRecord, OffsetRecord
from metadata.model import Extent, Topic, TopicId


class TopicSaved(msgspec.Struct, frozen=True, tag=True):
    topic: Topic


class TopicDropped(msgspec.Struct, frozen=True, tag=True):
    """The topic, its partitions, extents, producer states and committed group offsets.

    Nothing of it is found after the write; what takes long to remove may be removed later.
    """

    topic_id: TopicId


class ExtentsAdded(msgspec.Struct, frozen=True, tag=True):
    """New extents in offset order per partition; the partition's high watermark and max timestamp move with them.

    Their segments were added by a :class:`SegmentAdded` earlier in the same write.
    """

    extents: tuple[Extent, ...]


class SegmentAdded(msgspec.Struct, frozen=True, tag=True):
    """An object that was committed, even when no extent references it (all its batches were duplicates)."""

    agent_epoch: int
    sequence: int
    segment_key: str
    byte_length: int
    commit_ms: int
    answer: bytes
    """The MessagePack :class:`metadata.model.SegmentCommitted`, for a retried commit."""


class AnswersSettled(msgspec.Struct, frozen=True, tag=True):
    """Answers of ``agent_epoch`` up to ``sequence`` may be forgotten (the segments stay)."""

    agent_epoch: int
    sequence: int


class ProducerSaved(msgspec.Struct, frozen=True, tag=True):
    """Idempotence state of one producer on one partition, replaced whole."""

    topic_id: TopicId
    partition: int
    producer_id: int
    state: bytes
    updated_ms: int


class ProducersExpired(msgspec.Struct, frozen=True, tag=True):
    producers: tuple[tuple[TopicId, int, int], ...]
    """(topic id, partition, producer id)"""


class AgentSaved(msgspec.Struct, frozen=True, tag=True):
    agent_uid: str
    node_id: int
    agent_epoch: int
    zone: str
    group: str


class CounterSaved(msgspec.Struct, frozen=True, tag=True):
    """A named number that only grows: ``agent_epoch``, ``node_id``, ``producer_id``."""

    name: str
    value: int


class GroupSaved(msgspec.Struct, frozen=True, tag=True):
    record: GroupRecord


class GroupDropped(msgspec.Struct, frozen=True, tag=True):
    """The group and its committed offsets."""

    group_id: str


class OffsetsSaved(msgspec.Struct, frozen=True, tag=True):
    """Offsets of partitions that do not exist (any more) are left out."""

    group_id: str
    offsets: tuple[OffsetRecord, ...]


class OffsetsDropped(msgspec.Struct, frozen=True, tag=True):
    group_id: str
    partitions: tuple[tuple[TopicId, int], ...]


Change = (
    TopicSaved
    | TopicDropped
    | ExtentsAdded
    | SegmentAdded
    | AnswersSettled
    | ProducerSaved
    | ProducersExpired
    | AgentSaved
    | CounterSaved
    | GroupSaved
    | GroupDropped
    | OffsetsSaved
    | OffsetsDropped
)


class PartitionRow(msgspec.Struct, frozen=True):
    topic_id: TopicId
    partition: int
    log_start_offset: int
    high_watermark: int
    max_timestamp_ms: int


class StoreSnapshot(msgspec.Struct, frozen=True):
    """All hot state at start-up. Extents are *not* in it: they stay in the store and are found by query."""

    cluster_id: str
    topics: tuple[Topic, ...]
    partitions: tuple[PartitionRow, ...]
    producers: tuple[ProducerSaved, ...]
    answers: tuple[SegmentAdded, ...]
    agents: tuple[AgentSaved, ...]
    counters: dict[str, int]
    groups: tuple[GroupRecord, ...]
    offsets: dict[str, tuple[OffsetRecord, ...]]


class StoreUnavailable(Exception):
    """The store cannot be read or written now; the outcome of a write is unknown."""


class MetadataStore(Protocol):
    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        """Create or migrate the schema and read the hot state; ``new_cluster_id`` is kept if the store is new."""

    async def write(self, changes: Sequence[Change]) -> None:
        """Apply all changes in order in one durable transaction, or none.

        :raises StoreUnavailable: outcome unknown; the caller reloads before it decides anything else.
        """

    async def reload(self) -> StoreSnapshot:
        """The hot state as it is durable now (after a write of unknown outcome)."""

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        """As :class:`metadata.model.ExtentsQuery`, but none with ``base_offset >= before_offset``."""

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None: ...

    async def close(self) -> None: ...
