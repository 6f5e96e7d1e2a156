"""The metadata store port: one durable, atomic write of the changes a batch of commands decided.

``metadata.state`` and ``metadata.groups`` decide; a store only remembers. SQL lives in the implementations.
One contract suite (``tests/contract``) runs against each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from metadata.compaction import SegmentSummary
from metadata.group_model import GroupRecord, OffsetRecord
from metadata.model import DeletedTopic, Extent, Topic, TopicId


class TopicSaved(msgspec.Struct, frozen=True, tag=True):
    topic: Topic
    producer_id_floor: int = 0
    """What *new* partitions begin with, of a new topic or of one that grew; those that exist keep theirs."""


class TopicDropped(msgspec.Struct, frozen=True, tag=True):
    """The topic, its partitions, extents, producer states and committed group offsets.

    Nothing of it is found after the write; what takes long to remove is left to :meth:`MetadataStore.purge`.
    """

    topic_id: TopicId


class TopicHidden(msgspec.Struct, frozen=True, tag=True):
    """The topic was deleted, and may come back: its rows stay, but for committed group offsets, which go."""

    topic_id: TopicId
    deleted_ms: int


class TopicRestored(msgspec.Struct, frozen=True, tag=True):
    """A hidden topic is back, as it was."""

    topic_id: TopicId


class ExtentsAdded(msgspec.Struct, frozen=True, tag=True, gc=False):
    """New extents in offset order per partition; the partition's high watermark and max timestamp move with them.

    Their segments were added by a :class:`SegmentAdded` earlier in the same write, and nothing that removes rows came
    in between. Each segment's row counts the extents, and their bytes, that reference it.
    """

    extents: tuple[Extent, ...]


class SegmentAdded(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An object that was committed, even when no extent references it (all its batches were duplicates)."""

    agent_epoch: int
    sequence: int
    segment_key: str
    byte_length: int
    commit_ms: int
    answer: bytes
    """The MessagePack :class:`metadata.model.SegmentCommitted`, for a retried commit."""
    level: int = 0
    """:func:`metadata.compaction.initial_level`."""


OffsetRange = tuple[TopicId, int, int, int]
"""Topic id, partition, first and last offset."""


class CompactedSegment(msgspec.Struct, frozen=True):
    """An object that compaction made. Not committed, so there is no answer to keep."""

    agent_epoch: int
    sequence: int
    segment_key: str
    byte_length: int
    level: int
    commit_ms: int


class ExtentsSwapped(msgspec.Struct, frozen=True, tag=True):
    """Extents of a compacted segment take the place of all that lie in the same offsets, ``replaced_count`` together.

    They begin and end where those did. Nothing else of a partition changes. The segment may be there already: then
    more of it is referenced now. Segments that nothing references any more are dead at ``swapped_ms``.
    """

    segment: CompactedSegment
    extents: tuple[Extent, ...]
    replaced_count: int
    swapped_ms: int


class SegmentsDropped(msgspec.Struct, frozen=True, tag=True):
    """Objects of dead segments have been deleted: their rows go. A segment that is referenced is left alone."""

    segments: tuple[tuple[int, int], ...]
    """(agent epoch, sequence)"""


class LogStartMoved(msgspec.Struct, frozen=True, tag=True):
    """Records below ``log_start_offset`` are gone; it never falls, nor passes the high watermark.

    Extents that end below it are found no more once :meth:`MetadataStore.purge` has removed them; nobody asks for them.
    """

    topic_id: TopicId
    partition: int
    log_start_offset: int


class AnswersSettled(msgspec.Struct, frozen=True, tag=True):
    """Answers of ``agent_epoch`` up to ``sequence`` may be forgotten (the segments stay)."""

    agent_epoch: int
    sequence: int


class ProducerSaved(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Idempotence state of one producer on one partition, replaced whole."""

    topic_id: TopicId
    partition: int
    producer_id: int
    state: bytes
    updated_ms: int


class ProducersExpired(msgspec.Struct, frozen=True, tag=True):
    """States to forget; each partition's ``producer_id_floor`` rises above the ids forgotten there, and never falls."""

    producers: tuple[tuple[TopicId, int, int], ...]
    """(topic id, partition, producer id)"""


class AgentSaved(msgspec.Struct, frozen=True, tag=True):
    """An agent as it registered, replaced whole. ``agent_epoch`` -1: fenced; the row keeps its node id."""

    agent_uid: str
    node_id: int
    agent_epoch: int
    zone: str
    group: str
    host: str = ""
    port: int = 0
    http_address: str = ""
    version: str = ""
    roles: tuple[str, ...] = ()
    registered_ms: int = 0
    fenced_ms: int = 0
    """When it was fenced; 0: it is not."""


class AgentDropped(msgspec.Struct, frozen=True, tag=True):
    """An agent that has been fenced for long is forgotten; its node id is never used again."""

    agent_uid: str


class CallAnswered(msgspec.Struct, frozen=True, tag=True):
    """The first answer to a rare mutating call (topics, registrations), for its retries. Kept for some minutes."""

    call_id: str
    answer: bytes
    answered_ms: int


class CallsForgotten(msgspec.Struct, frozen=True, tag=True):
    """Answers from before ``before_ms`` may go."""

    before_ms: int


class CounterSaved(msgspec.Struct, frozen=True, tag=True):
    """A named number that only grows, as ``agent_epoch``, ``node_id``, ``producer_id``; a bounded number of them."""

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
    | TopicHidden
    | TopicRestored
    | TopicDropped
    | ExtentsAdded
    | SegmentAdded
    | ExtentsSwapped
    | SegmentsDropped
    | LogStartMoved
    | AnswersSettled
    | ProducerSaved
    | ProducersExpired
    | AgentSaved
    | AgentDropped
    | CallAnswered
    | CallsForgotten
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
    producer_id_floor: int = 0
    """Producers with ids below it may have been forgotten here: by expiry, or with a deleted topic of this name."""


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
    calls: tuple[CallAnswered, ...] = ()
    deleted_topics: tuple[DeletedTopic, ...] = ()
    """Hidden ones; their partitions and producers are among the others."""


class DeadSegment(msgspec.Struct, frozen=True):
    """A segment that no extent references any more."""

    agent_epoch: int
    sequence: int
    segment_key: str
    byte_length: int
    dead_ms: int


class SegmentTotals(msgspec.Struct, frozen=True):
    """Sums over some segments, in the order they were committed."""

    segments: int = 0
    segment_bytes: int = 0
    live_bytes: int = 0
    dead_segments: int = 0
    dead_bytes: int = 0
    last_id: int = 0
    """Where the next part begins; 0: this was the last one."""

    def plus(self, other: SegmentTotals) -> SegmentTotals:
        return SegmentTotals(
            self.segments + other.segments,
            self.segment_bytes + other.segment_bytes,
            self.live_bytes + other.live_bytes,
            self.dead_segments + other.dead_segments,
            self.dead_bytes + other.dead_bytes,
            other.last_id,
        )


class StoreUnavailable(Exception):
    """The store cannot be read or written now; the outcome of a write is unknown."""


class Deposed(StoreUnavailable):
    """Another process leads now: this one wrote nothing since, and never will again under its generation."""


class MetadataStore(Protocol):
    """One process at a time may write: the *leader*, under a generation that only grows.

    ``lead``, ``open``, then ``write`` and ``reload`` with ``renew`` beside them, until :class:`Deposed`; then ``lead``
    again. Reads (``find_*``) need an open store.
    """

    async def lead(self) -> int:
        """Wait, however long, until this process leads; its generation, higher than any before. Cancel to give up.

        A leader that died is replaced at once; one that froze, when it has not renewed for the lease.

        :raises StoreUnavailable: the store cannot be reached, or its schema is newer than this program.
        """

    async def renew(self) -> None:
        """Still here. Called about once a second; a leader that cannot renew within the lease must stop answering.

        :raises Deposed:
        :raises StoreUnavailable: not known; try again before the lease ends.
        """

    def sure(self) -> bool:
        """Whether this process knows of nothing that would let another lead already. False: answer nothing, renew."""

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        """Create or migrate the schema and read the hot state; ``new_cluster_id`` is kept if the store is new.

        Leads first when :meth:`lead` was not called (one process, embedded).
        """

    async def write(self, changes: Sequence[Change]) -> None:
        """Apply all changes in order in one durable transaction, or none. It checks the generation.

        :raises Deposed: nothing was written.
        :raises StoreUnavailable: outcome unknown; the caller reloads before it decides anything else.
        """

    async def reload(self) -> StoreSnapshot:
        """The hot state as it is durable now (after a write of unknown outcome).

        :raises Deposed:
        :raises StoreUnavailable:
        """

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        """As :class:`metadata.model.ExtentsQuery`, but none with ``base_offset >= before_offset``."""

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        """The first extent that reaches above the log start offset and has ``timestamp_ms`` or a later one in it."""

    async def sum_extents(
        self, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
    ) -> tuple[int, int]:
        """Bytes of up to ``row_max`` extents that begin in [``offset``, ``before_offset``), and where the next one does
        (``before_offset`` when these were the last). The extent that holds ``offset`` counts too."""

    async def purge(self, row_max: int, now_ms: int) -> bool:
        """Remove up to about ``row_max`` rows of dropped topics, and of extents below their partitions' log starts, in
        one transaction; True when there may be more. Segments that nothing references any more are dead at ``now_ms``.

        It waits for the writes that came before it, and those that come during it wait for this one transaction.

        :raises Deposed: nothing was removed.
        :raises StoreUnavailable: outcome unknown; safe to repeat.
        """

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        """Segments dead since ``until_ms`` or earlier, longest first; none whose answer may still be asked for."""

    async def find_segments(self, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        """The keys of those (agent epoch, sequence) that were committed and whose rows are there."""

    async def segment_totals(self, after_id: int, row_max: int) -> SegmentTotals:
        """Of up to ``row_max`` segments after the one called ``after_id`` (0: from the first)."""

    async def find_compactable(self, level: int, count_max: int) -> list[SegmentSummary]:
        """Live segments of ``level``, by the time of their (oldest) commit."""

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        """Every extent in these segments, (agent epoch, sequence), that reaches above its log start; in any order."""

    async def find_ranges(self, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
        """For each range the extents that begin in it, by offset."""

    async def close(self) -> None: ...
