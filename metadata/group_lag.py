"""How far consumer groups are behind, in records and in seconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from metadata.group_model import GroupLag, OffsetRecord
from metadata.model import ExtentsFound, ExtentsQuery, Refusal, Topic, TopicId

FindExtents = Callable[[Sequence[ExtentsQuery]], Awaitable[list[ExtentsFound]]]


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
