"""How far consumer groups are behind, in records and in seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from metadata.group_model import GroupLag, OffsetRecord
from metadata.group_offsets import CommittedOffsets
from metadata.model import ExtentsFound, ExtentsQuery, Refusal, Topic, TopicId

LAGS_AT_ONCE = 500
"""Measured without letting others work."""
LAGS_MAX = 20_000
"""Committed offsets whose lag is measured for one scrape."""
FindExtents = Callable[[Sequence[ExtentsQuery]], Awaitable[list[ExtentsFound]]]


async def measure_lags(
    group_ids: Sequence[str],
    offsets_of: Callable[[str], CommittedOffsets | None],
    topics: Callable[[TopicId], Topic | None],
    high_watermark: Callable[[TopicId, int], int | None],
    find_extents: FindExtents,
    now_ms: Callable[[], int],
) -> list[GroupLag]:
    """Of every offset that these groups have committed, in their order; others are let work in between.

    Whole groups: those whose offsets would exceed :data:`LAGS_MAX` are left out. The callables answer from memory, None
    for what is gone meanwhile.
    """
    lags: list[GroupLag] = []
    measured = 0
    for group_id in group_ids:
        offsets = offsets_of(group_id)
        if offsets is None or measured + len(offsets) > LAGS_MAX:
            continue
        for record in offsets.find(None):
            measured += 1
            if measured % LAGS_AT_ONCE == 0:
                await asyncio.sleep(0)
            topic, end = topics(record.topic_id), high_watermark(record.topic_id, record.partition)
            if topic is not None and end is not None:
                lags.append(await measure_lag(group_id, record, topic, end, find_extents, now_ms()))
    return lags


async def measure_lag(
    group_id: str, record: OffsetRecord, topic: Topic, high_watermark: int, find_extents: FindExtents, now_ms: int
) -> GroupLag:
    """One query if the group has not read the partition to its end, none if it has.

    Records that retention removed are not counted: nobody can read them any more.
    """
    if record.offset >= high_watermark:
        return GroupLag(group_id, topic.name, record.partition, 0, 0.0)
    found = await _first_unread(record.topic_id, record.partition, record.offset, find_extents)
    records = max(high_watermark - max(record.offset, found.log_start_offset), 0)
    seconds = max(now_ms - found.extents[0].commit_ms, 0) / 1000 if found.extents else 0.0
    return GroupLag(group_id, topic.name, record.partition, records, seconds)


async def _first_unread(topic_id: TopicId, partition: int, offset: int, find_extents: FindExtents) -> ExtentsFound:
    query = ExtentsQuery(topic_id, partition, offset, 1)
    (found,) = await find_extents([query])
    if found.refusal is Refusal.OFFSET_OUT_OF_RANGE and offset < found.log_start_offset:
        (found,) = await find_extents([msgspec.structs.replace(query, offset=found.log_start_offset)])
    return found
