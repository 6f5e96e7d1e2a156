"""The one place where our own refusals and failures become Kafka error codes.

Each has a class, which says what the *client* may conclude:

- ``RETRIABLE``: nothing happened, the same request may succeed later;
- ``FATAL``: nothing happened, the same request will fail again until the client changes something;
- ``UNKNOWN``: it may or may not have happened; repeating it is what an at-least-once or idempotent client does.

Source: ``org.apache.kafka.common.protocol.Errors``; retriability as in Kafka's protocol guide.
"""

from __future__ import annotations

import enum

from kio.schema.errors import ErrorCode

from ingest.ticket import IngestFailed
from metadata.model import Fenced, MetadataUnavailable, Refusal, Refused
from storage.store import StorageError


class ErrorClass(enum.Enum):
    """What a client may conclude from an error; see the module's text."""

    RETRIABLE = "retriable"
    FATAL = "fatal"
    UNKNOWN = "unknown"


_RETRIABLE, _FATAL, _UNKNOWN = ErrorClass.RETRIABLE, ErrorClass.FATAL, ErrorClass.UNKNOWN

REFUSALS: dict[Refusal, tuple[ErrorCode, ErrorClass]] = {
    Refusal.UNKNOWN_TOPIC_OR_PARTITION: (ErrorCode.unknown_topic_or_partition, _RETRIABLE),
    Refusal.UNKNOWN_TOPIC_ID: (ErrorCode.unknown_topic_id, _RETRIABLE),
    Refusal.TOPIC_ALREADY_EXISTS: (ErrorCode.topic_already_exists, _FATAL),
    Refusal.INVALID_TOPIC: (ErrorCode.invalid_topic_exception, _FATAL),
    Refusal.INVALID_PARTITIONS: (ErrorCode.invalid_partitions, _FATAL),
    Refusal.INVALID_REPLICATION_FACTOR: (ErrorCode.invalid_replication_factor, _FATAL),
    Refusal.INVALID_REPLICA_ASSIGNMENT: (ErrorCode.invalid_replica_assignment, _FATAL),
    Refusal.INVALID_CONFIG: (ErrorCode.invalid_config, _FATAL),
    Refusal.INVALID_REQUEST: (ErrorCode.invalid_request, _FATAL),
    Refusal.OUT_OF_ORDER_SEQUENCE: (ErrorCode.out_of_order_sequence_number, _FATAL),
    Refusal.INVALID_PRODUCER_EPOCH: (ErrorCode.invalid_producer_epoch, _FATAL),
    Refusal.UNKNOWN_PRODUCER_ID: (ErrorCode.unknown_producer_id, _FATAL),
    Refusal.OFFSET_OUT_OF_RANGE: (ErrorCode.offset_out_of_range, _FATAL),
    Refusal.POLICY_VIOLATION: (ErrorCode.policy_violation, _FATAL),
    Refusal.STALE_BROKER_EPOCH: (ErrorCode.stale_broker_epoch, _FATAL),
    Refusal.COORDINATOR_NOT_AVAILABLE: (ErrorCode.coordinator_not_available, _RETRIABLE),
    Refusal.COORDINATOR_LOAD_IN_PROGRESS: (ErrorCode.coordinator_load_in_progress, _RETRIABLE),
    Refusal.NOT_COORDINATOR: (ErrorCode.not_coordinator, _RETRIABLE),
    Refusal.INVALID_GROUP_ID: (ErrorCode.invalid_group_id, _FATAL),
    Refusal.INCONSISTENT_GROUP_PROTOCOL: (ErrorCode.inconsistent_group_protocol, _FATAL),
    Refusal.UNKNOWN_MEMBER_ID: (ErrorCode.unknown_member_id, _FATAL),
    Refusal.MEMBER_ID_REQUIRED: (ErrorCode.member_id_required, _FATAL),
    Refusal.ILLEGAL_GENERATION: (ErrorCode.illegal_generation, _FATAL),
    Refusal.REBALANCE_IN_PROGRESS: (ErrorCode.rebalance_in_progress, _FATAL),
    Refusal.INVALID_SESSION_TIMEOUT: (ErrorCode.invalid_session_timeout, _FATAL),
    Refusal.FENCED_INSTANCE_ID: (ErrorCode.fenced_instance_id, _FATAL),
    Refusal.GROUP_MAX_SIZE_REACHED: (ErrorCode.group_max_size_reached, _FATAL),
    Refusal.GROUP_ID_NOT_FOUND: (ErrorCode.group_id_not_found, _FATAL),
    Refusal.NON_EMPTY_GROUP: (ErrorCode.non_empty_group, _FATAL),
    Refusal.GROUP_SUBSCRIBED_TO_TOPIC: (ErrorCode.group_subscribed_to_topic, _FATAL),
    Refusal.OFFSET_METADATA_TOO_LARGE: (ErrorCode.offset_metadata_too_large, _FATAL),
}
"""Group refusals such as REBALANCE_IN_PROGRESS are fatal to *this request*: the client must rejoin first."""

FAILURES: tuple[tuple[type[Exception], ErrorCode, ErrorClass], ...] = (
    (MetadataUnavailable, ErrorCode.request_timed_out, _UNKNOWN),
    (IngestFailed, ErrorCode.request_timed_out, _UNKNOWN),
    (Fenced, ErrorCode.not_leader_or_follower, _RETRIABLE),
    (StorageError, ErrorCode.kafka_storage_error, _RETRIABLE),
)
"""Exceptions a handler may meet, most specific first. REQUEST_TIMED_OUT is Kafka's own word for an unknown outcome;
clients retry it, and librdkafka treats the record as possibly persisted."""


def error_code(refusal: Refusal) -> ErrorCode:
    """The Kafka error code of ``refusal``."""
    return REFUSALS[refusal][0]


def failure_code(error: Exception) -> ErrorCode:
    """The Kafka error code of an exception that a handler caught; UNKNOWN_SERVER_ERROR for one we do not know."""
    if isinstance(error, Refused):
        return error_code(error.refusal)
    for kind, code, _ in FAILURES:
        if isinstance(error, kind):
            return code
    return ErrorCode.unknown_server_error


def named_failure_code(error: Exception) -> ErrorCode:
    """As :func:`failure_code`, to a client that named a topic: that our id of it is gone means nothing to it."""
    code = failure_code(error)
    return ErrorCode.unknown_topic_or_partition if code is ErrorCode.unknown_topic_id else code


def error_class(error: Refusal | Exception) -> ErrorClass:
    """What the client may conclude. An exception we do not know is ``UNKNOWN``."""
    if isinstance(error, Refused):
        error = error.refusal
    if isinstance(error, Refusal):
        return REFUSALS[error][1]
    for kind, _, found in FAILURES:
        if isinstance(error, kind):
            return found
    return ErrorClass.UNKNOWN
