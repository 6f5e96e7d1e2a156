"""DeleteRecords (key 21), versions 0-2: KIP-107, KIP-204 (the admin client's).

Records below an offset (-1: the high watermark) are gone for every reader when the answer is sent; it carries the log
start offset by then, which is higher than asked for where the log had been cut further already. Their bytes go later
(RFC 6). Above the high watermark: OFFSET_OUT_OF_RANGE. A topic whose ``cleanup.policy`` is ``compact`` alone:
POLICY_VIOLATION.

Any agent answers for any partition, so nobody is told NOT_LEADER_OR_FOLLOWER. Left out: the request's timeout (an
answer takes as long as one metadata transaction).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import error_code, failure_code
from metadata.model import MetadataError, RecordsDeletion, Refusal

NO_WATERMARK = -1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """All partitions of the request in one transaction; one that is refused does not disturb the others."""
    rows = [(topic.name, partition) for topic in request.topics for partition in topic.partitions]
    views = {topic.name: agent.topics.by_name(topic.name) for topic in request.topics}
    deletions = {
        position: RecordsDeletion(view.topic_id, partition.partition_index, partition.offset)
        for position, (name, partition) in enumerate(rows)
        if (view := views[name]) is not None
    }
    answers: dict[int, Body] = {}
    try:
        done = await agent.metadata.delete_records(list(deletions.values())) if deletions else []
    except MetadataError as error:
        code = failure_code(error)
        answers = {position: _row(rows[position][1], code) for position in deletions}
    else:
        for position, deleted in zip(deletions, done, strict=True):
            refusal = deleted.refusal
            if refusal is Refusal.UNKNOWN_TOPIC_ID:  # it was named, not given by its id
                refusal = Refusal.UNKNOWN_TOPIC_OR_PARTITION
            code = ErrorCode.none if refusal is None else error_code(refusal)
            answers[position] = _row(rows[position][1], code, deleted.low_watermark)
    entries = iter(
        [
            answers.get(position) or _row(partition, ErrorCode.unknown_topic_or_partition)
            for position, (_, partition) in enumerate(rows)
        ]
    )
    return {
        "throttle_time": 0,
        "topics": tuple(
            {"name": topic.name, "partitions": tuple(next(entries) for _ in topic.partitions)}
            for topic in request.topics
        ),
    }


def _row(partition: Any, code: ErrorCode, low_watermark: int = NO_WATERMARK) -> Body:
    return {"partition_index": partition.partition_index, "low_watermark": low_watermark, "error_code": code}
