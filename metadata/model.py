"""The words of the metadata service: what its state is made of, and what its commands and answers carry.

Everything here is a frozen ``msgspec.Struct``, so that the same values travel in-process today and as
MessagePack to a metadata server, without a second set of types. Offsets, byte positions and
timestamps (milliseconds since the Unix epoch) are plain integers as in Kafka. A topic id is 16 raw bytes.
"""

from __future__ import annotations

import enum

import msgspec

TopicId = bytes
NO_PRODUCER_ID = -1
PRODUCERS_DESCRIBED_MAX = 10_000
EXTENTS_FOUND_MAX = 4_096
"""Extents in one answer to a query; whoever wants more asks again from the next offset."""


class Refusal(enum.StrEnum):
    """Why a command changed nothing. Named as in Kafka's error table; ``agent.errors`` maps each to its code."""

    UNKNOWN_TOPIC_OR_PARTITION = "unknown_topic_or_partition"
    UNKNOWN_TOPIC_ID = "unknown_topic_id"
    TOPIC_ALREADY_EXISTS = "topic_already_exists"
    INVALID_TOPIC = "invalid_topic_exception"
    INVALID_PARTITIONS = "invalid_partitions"
    INVALID_REPLICATION_FACTOR = "invalid_replication_factor"
    INVALID_REPLICA_ASSIGNMENT = "invalid_replica_assignment"
    INVALID_CONFIG = "invalid_config"
    INVALID_REQUEST = "invalid_request"
    OUT_OF_ORDER_SEQUENCE = "out_of_order_sequence_number"
    INVALID_PRODUCER_EPOCH = "invalid_producer_epoch"
    UNKNOWN_PRODUCER_ID = "unknown_producer_id"
    OFFSET_OUT_OF_RANGE = "offset_out_of_range"
    POLICY_VIOLATION = "policy_violation"
    STALE_BROKER_EPOCH = "stale_broker_epoch"
    # consumer groups
    COORDINATOR_NOT_AVAILABLE = "coordinator_not_available"
    COORDINATOR_LOAD_IN_PROGRESS = "coordinator_load_in_progress"
    NOT_COORDINATOR = "not_coordinator"
    INVALID_GROUP_ID = "invalid_group_id"
    INCONSISTENT_GROUP_PROTOCOL = "inconsistent_group_protocol"
    UNKNOWN_MEMBER_ID = "unknown_member_id"
    MEMBER_ID_REQUIRED = "member_id_required"
    ILLEGAL_GENERATION = "illegal_generation"
    REBALANCE_IN_PROGRESS = "rebalance_in_progress"
    INVALID_SESSION_TIMEOUT = "invalid_session_timeout"
    FENCED_INSTANCE_ID = "fenced_instance_id"
    GROUP_MAX_SIZE_REACHED = "group_max_size_reached"
    GROUP_ID_NOT_FOUND = "group_id_not_found"
    NON_EMPTY_GROUP = "non_empty_group"
    GROUP_SUBSCRIBED_TO_TOPIC = "group_subscribed_to_topic"
    OFFSET_METADATA_TOO_LARGE = "offset_metadata_too_large"


class MetadataError(Exception):
    """A metadata call failed as a whole."""


class MetadataUnavailable(MetadataError):
    """The service or its store cannot answer now; the outcome of a mutating call is *unknown*. Retry."""


class Fenced(MetadataError):
    """This agent epoch (or metadata leader) was replaced: stop, nothing you do can commit any more."""


class Refused(MetadataError):
    """The command was understood and declined; nothing changed."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


# --- topics ---------------------------------------------------------------------------------------------


class Topic(msgspec.Struct, frozen=True):
    """A topic and the configs set on it (only those that differ from the defaults)."""

    topic_id: TopicId
    name: str
    partition_count: int
    configs: dict[str, str]
    created_ms: int


class DeletedTopic(msgspec.Struct, frozen=True):
    """A topic that was deleted, and that can be brought back for a while."""

    topic: Topic
    deleted_ms: int


class TopicsChanged(msgspec.Struct, frozen=True):
    """What a subscriber hears when topics were created, altered or deleted."""

    upserted: tuple[Topic, ...] = ()
    deleted: tuple[TopicId, ...] = ()


# --- commits --------------------------------------------------------------------------------------------


class BatchDraft(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One record batch of an uploaded segment, waiting for its offsets.

    Batches of an :class:`ExtentDraft` lie back to back in the segment in this order.
    """

    byte_length: int
    record_count: int
    max_timestamp_ms: int
    producer_id: int = NO_PRODUCER_ID
    producer_epoch: int = -1
    base_sequence: int = -1


class ExtentDraft(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run of batches of one partition in a segment, from ``byte_position`` on."""

    topic_id: TopicId
    partition: int
    byte_position: int
    batches: tuple[BatchDraft, ...]


class SegmentCommit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Make a durable object's batches visible. Keyed by (agent epoch, ``sequence``): repeating it returns
    the first answer. Sequences of an epoch are committed in order, without gaps being required."""

    sequence: int
    segment_key: str
    byte_length: int
    extents: tuple[ExtentDraft, ...]


class BatchCommitted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one batch: ``refusal`` None means acknowledged at ``base_offset``.

    A duplicate of an idempotent producer is *acknowledged with its first offsets* (``duplicate`` true);
    the bytes of this copy are referenced by no extent.
    """

    base_offset: int
    log_start_offset: int
    duplicate: bool = False
    refusal: Refusal | None = None


class SegmentCommitted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Answer to :class:`SegmentCommit`: one row per extent draft, one entry per batch, in the same order."""

    sequence: int
    extents: tuple[tuple[BatchCommitted, ...], ...]


class Extent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run of batches of one partition inside a segment, with its offsets. ``last_offset`` is inclusive.

    Of ``level`` 0 or -1, as it was ingested, the stored batches still carry base offset 0; the reader assigns offsets
    by walking the run from ``base_offset``. Above, it is *placed*: compaction has written the offsets into the batches,
    and there may be gaps between them (docs/rfcs/0007-compaction.md).
    """

    topic_id: TopicId
    partition: int
    base_offset: int
    last_offset: int
    segment_key: str
    byte_position: int
    byte_length: int
    max_timestamp_ms: int
    commit_ms: int
    level: int = 0


class ExtentsQuery(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Extents of a partition from the one that holds ``offset`` on, until they sum to ``byte_max`` or more
    (at least one if there is one, at most EXTENTS_FOUND_MAX)."""

    topic_id: TopicId
    partition: int
    offset: int
    byte_max: int


class ExtentsFound(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``refusal`` is UNKNOWN_TOPIC_ID or OFFSET_OUT_OF_RANGE (below the log start or above the high watermark)."""

    high_watermark: int
    log_start_offset: int
    extents: tuple[Extent, ...] = ()
    refusal: Refusal | None = None


class PartitionOffsets(msgspec.Struct, frozen=True, array_like=True):
    log_start_offset: int
    high_watermark: int
    max_timestamp_ms: int = -1
    """Largest timestamp of any record in the partition, -1 when empty."""


class LogStart(msgspec.Struct, frozen=True, array_like=True):
    """Where a partition's log starts now: what a subscriber hears when it has moved."""

    topic_id: TopicId
    partition: int
    log_start_offset: int


class RecordsDeletion(msgspec.Struct, frozen=True, array_like=True):
    """Delete the records of a partition below ``before_offset``; -1: all there are."""

    topic_id: TopicId
    partition: int
    before_offset: int


class RecordsDeleted(msgspec.Struct, frozen=True, array_like=True):
    """``low_watermark`` is the log start offset by then; ``refusal`` as in :class:`ExtentsFound`, or POLICY_VIOLATION:
    the topic's cleanup policy does not delete."""

    low_watermark: int
    refusal: Refusal | None = None


# --- producers ----------------------------------------------------------------------------------------


class ProducerIdGranted(msgspec.Struct, frozen=True):
    producer_id: int
    producer_epoch: int


class ProducerDescription(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a partition remembers of an idempotent producer. ``updated_ms``: when its last batch was committed."""

    producer_id: int
    producer_epoch: int
    last_sequence: int
    updated_ms: int
