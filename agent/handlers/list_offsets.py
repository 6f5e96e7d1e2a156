"""ListOffsets (key 2), versions 1 to 7.

KIP-79 (offsets by timestamp), KIP-98 (isolation level: no transactions, so both levels agree), KIP-320 (leader epoch,
4+), KIP-734 (maximum timestamp, 7+). Special times a version does not know are refused with UNSUPPORTED_VERSION, as
are -4 and -5 (tiered storage): versions 8 and 9 are not offered. No match is offset -1 and no error.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.fetch.patch import LEADER_EPOCH, CorruptSegment
from agent.handlers.offset_for_leader_epoch import leader_epoch_error
from metadata.model import MetadataUnavailable, PartitionOffsets, Refused, TopicId
from storage.store import StorageError

LATEST, EARLIEST, MAX_TIMESTAMP = -1, -2, -3
MAX_TIMESTAMP_SINCE = 7
UNKNOWN = -1
SEARCHES_MAX = 8
"""Timestamp searches of one request at the same time."""


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    asked = [(topic.name, partition) for topic in request.topics for partition in topic.partitions]
    repeated = Counter((name, partition.partition_index) for name, partition in asked)
    entries: list[Body | None] = [None] * len(asked)
    known: list[tuple[int, TopicId]] = []
    for position, (name, partition) in enumerate(asked):
        view = agent.topics.by_name(name)
        if repeated[name, partition.partition_index] > 1:
            code: ErrorCode | None = ErrorCode.invalid_request
        elif _is_unknown_time(partition.timestamp, call.api_version):
            code = ErrorCode.unsupported_version
        elif view is None:
            code = ErrorCode.unknown_topic_or_partition
        else:
            code = leader_epoch_error(partition)
        if code is None and view is not None:
            known.append((position, view.topic_id))
        else:
            entries[position] = _entry(partition.partition_index, code)
    await _answer(asked, known, entries, agent)
    filled = iter(entries)
    return {
        "throttle_time": 0,
        "topics": tuple(
            {"name": topic.name, "partitions": tuple(next(filled) for _ in topic.partitions)}
            for topic in request.topics
        ),
    }


async def _answer(
    asked: Sequence[tuple[str, Any]], known: Sequence[tuple[int, TopicId]], entries: list[Body | None], agent: Agent
) -> None:
    """Fill in the entries of the partitions in ``known``, by one call plus the timestamp searches."""
    if not known:
        return
    queries = [(topic_id, asked[position][1].partition_index) for position, topic_id in known]
    try:
        offsets: list[PartitionOffsets | None] = await agent.metadata.partition_offsets(queries)
    except MetadataUnavailable:
        for position, _ in known:
            entries[position] = _entry(asked[position][1].partition_index, ErrorCode.kafka_storage_error)
        return
    turns = asyncio.Semaphore(SEARCHES_MAX)

    async def search(position: int, topic_id: TopicId, index: int, timestamp_ms: int, log_start_offset: int) -> None:
        async with turns:
            entries[position] = await _search(agent, topic_id, index, timestamp_ms, log_start_offset)

    searches = []
    for (position, topic_id), found in zip(known, offsets, strict=True):
        partition = asked[position][1]
        index, timestamp_ms = partition.partition_index, partition.timestamp
        if found is None:
            entries[position] = _entry(index, ErrorCode.unknown_topic_or_partition)
        elif timestamp_ms == LATEST:
            entries[position] = _entry(index, None, found.high_watermark)
        elif timestamp_ms == EARLIEST:
            entries[position] = _entry(index, None, found.log_start_offset)
        else:
            sought_ms = found.max_timestamp_ms if timestamp_ms == MAX_TIMESTAMP else timestamp_ms
            if sought_ms < 0 or sought_ms > found.max_timestamp_ms:
                entries[position] = _entry(index, None)
            else:
                searches.append(search(position, topic_id, index, sought_ms, found.log_start_offset))
    await asyncio.gather(*searches)


async def _search(agent: Agent, topic_id: TopicId, index: int, timestamp_ms: int, log_start_offset: int) -> Body:
    try:
        found = await agent.fetcher.timestamps.first_at_or_after(topic_id, index, timestamp_ms)
    except Refused:
        return _entry(index, ErrorCode.unknown_topic_or_partition)
    except (StorageError, MetadataUnavailable, CorruptSegment) as error:
        agent.fetcher.failures.report(
            "timestamp_search_failed", topic_id=topic_id.hex(), partition=index, reason=str(error)
        )
        return _entry(index, ErrorCode.kafka_storage_error)
    if found is None:
        return _entry(index, None)
    # The log may start inside the batch it was found in: what is asked for does not begin before that.
    return _entry(index, None, max(found.offset, log_start_offset), found.timestamp_ms)


def _is_unknown_time(timestamp_ms: int, version: int) -> bool:
    if timestamp_ms >= EARLIEST:
        return False
    return timestamp_ms != MAX_TIMESTAMP or version < MAX_TIMESTAMP_SINCE


def _entry(index: int, code: ErrorCode | None, offset: int = UNKNOWN, timestamp_ms: int = UNKNOWN) -> Body:
    return {
        "partition_index": index,
        "error_code": ErrorCode.none if code is None else code,
        "timestamp": timestamp_ms,
        "offset": offset,
        "leader_epoch": LEADER_EPOCH if offset >= 0 else UNKNOWN,
    }
