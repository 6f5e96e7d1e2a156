"""Fetch (key 1), versions 4 to 16.

KIP-74 (limits), KIP-98 (isolation level: there are no transactions, so the last stable offset is the high watermark and
nothing was ever aborted), KIP-107 (log start offset, 5+), KIP-110 (zstd needs 10+), KIP-227 (sessions, 7+),
KIP-320 (current leader epoch, 9+), KIP-392 (preferred read replica, 11+: always none), KIP-516 (topic ids, 13+).

Sessions are not kept: every answer carries session id 0 and every partition asked for, which the KIP allows; a client
that names a session is told that it does not exist, and then sends a full request. Left out: what only
followers send (replica state, ``last_fetched_epoch`` divergence, log start offset), magic 0 and 1, throttling.
The leader hints of KIP-951 are only given by an agent that leaves (:mod:`agent.handlers.moved`).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Call
from agent.errors import error_code
from agent.fetch.answer import Fetched, FetchLimits, PartitionFetch
from agent.fetch.patch import CorruptSegment
from agent.handlers.offset_for_leader_epoch import leader_epoch_error
from agent.topics import TopicDirectory
from agent.wire.codec import EncodedResponse
from agent.wire.fetch_codec import NO_TOPIC_ID, TOPIC_ID_SINCE, PartitionRow, encode_fetch_response
from metadata.model import MetadataUnavailable, Refusal
from storage.store import StorageError

ZSTD_SINCE = 10
READ_COMMITTED = 1
FINAL_EPOCH, INITIAL_EPOCH = -1, 0

_Slot = tuple[int, ErrorCode | int]
"""A partition of the request: its index, and either an error or its position among those that are fetched."""


async def handle(call: Call, request: Any, agent: Agent) -> EncodedResponse:
    """Waits up to the request's ``max_wait_ms``. Cancelling (the connection is gone) leaves nothing behind."""
    version = call.api_version
    if getattr(request, "session_id", 0) != 0 or getattr(request, "session_epoch", FINAL_EPOCH) > INITIAL_EPOCH:
        pieces, byte_length, _own_bytes = encode_fetch_response(
            version, (), error_code=ErrorCode.fetch_session_id_not_found.value
        )
        return EncodedResponse(pieces, byte_length)
    fetches: list[PartitionFetch] = []
    topics = [_resolve(topic, version, agent.topics, fetches) for topic in request.topics]
    refused = any(isinstance(slot, ErrorCode) for _, slots in topics for _, slot in slots)
    limits = FetchLimits(
        byte_max=request.max_bytes,
        byte_min=request.min_bytes,
        max_wait_ms=0 if refused or not fetches else int(request.max_wait.total_seconds() * 1000),
    )
    fetched = await agent.fetcher.fetch(fetches, limits)
    try:
        rows = [
            (topic, [_row(index, slot, fetches, fetched, version, agent.topics) for index, slot in slots])
            for topic, slots in topics
        ]
        pieces, byte_length, own_bytes = encode_fetch_response(
            version, rows, read_committed=request.isolation_level == READ_COMMITTED
        )
        fetched.hold(own_bytes)
    except BaseException:
        fetched.release()
        raise
    return EncodedResponse(pieces, byte_length, fetched.release)


def _resolve(
    topic: Any, version: int, directory: TopicDirectory, fetches: list[PartitionFetch]
) -> tuple[str | bytes, list[_Slot]]:
    """The topic as the answer names it, and its partitions; those without an error are added to ``fetches``."""
    named: str | bytes
    if version >= TOPIC_ID_SINCE:
        # An id this agent has not heard of may be newer than its view: the metadata service decides.
        named = NO_TOPIC_ID if topic.topic_id is None else topic.topic_id.bytes
        topic_id: bytes | None = None if topic.topic_id is None else named
        missing = ErrorCode.unknown_topic_id
    else:
        view = directory.by_name(topic.topic)
        named = str(topic.topic)
        topic_id = None if view is None else view.topic_id
        missing = ErrorCode.unknown_topic_or_partition
    slots: list[_Slot] = []
    for asked in topic.partitions:
        index = asked.partition
        refusal = missing if topic_id is None else leader_epoch_error(asked)
        if topic_id is None or refusal is not None:
            slots.append((index, refusal or missing))
        else:
            slots.append((index, len(fetches)))
            fetches.append(PartitionFetch(topic_id, index, asked.fetch_offset, max(0, asked.partition_max_bytes)))
    return named, slots


def _row(
    index: int,
    slot: ErrorCode | int,
    fetches: list[PartitionFetch],
    fetched: Fetched,
    version: int,
    directory: TopicDirectory,
) -> PartitionRow:
    if isinstance(slot, ErrorCode):
        return _refused(index, slot)
    answer = fetched.partitions[slot]
    if answer.problem is not None:
        return _refused(index, _code(answer.problem, fetches[slot], version, directory))
    if answer.zstd and version < ZSTD_SINCE:
        return _refused(index, ErrorCode.unsupported_compression_type)
    return PartitionRow(index, 0, answer.high_watermark, answer.log_start_offset, answer.chunks, answer.byte_length)


def _refused(index: int, code: ErrorCode) -> PartitionRow:
    return PartitionRow(index, code.value, -1, -1, (), 0)


def _code(problem: Refusal | Exception, fetch: PartitionFetch, version: int, directory: TopicDirectory) -> ErrorCode:
    """Consumers expect few errors of a fetch, and throw on others: what may pass by itself is KAFKA_STORAGE_ERROR."""
    if isinstance(problem, Refusal):
        known = directory.by_id(fetch.topic_id)
        if problem is Refusal.UNKNOWN_TOPIC_ID and (version < TOPIC_ID_SINCE or known is not None):
            return ErrorCode.unknown_topic_or_partition
        return error_code(problem)
    if isinstance(problem, CorruptSegment):
        return ErrorCode.corrupt_message
    if isinstance(problem, StorageError | MetadataUnavailable):
        return ErrorCode.kafka_storage_error
    return ErrorCode.unknown_server_error
