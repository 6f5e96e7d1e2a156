"""OffsetDelete (key 47), version 0: KIP-496.

Offsets of topics to which no member subscribes are deleted, also where there are none; the others are
GROUP_SUBSCRIBED_TO_TOPIC. A group with members that are no consumers (Kafka Connect's) is NON_EMPTY_GROUP.

As on Kafka, the group is not asked after when none of the partitions exists.
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from metadata.group_model import OffsetDeleteAnswer
from metadata.model import MetadataUnavailable, Refusal, TopicId


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Delete what can be deleted, and answer every partition in the request's order."""
    views = [agent.topics.by_name(topic.name) for topic in request.topics]
    named = [
        (view.topic_id, row.partition_index)
        for topic, view in zip(request.topics, views, strict=True)
        if view is not None
        for row in topic.partitions
    ]
    answer = await _delete(request.group_id, named, agent) if named else OffsetDeleteAnswer(None)
    if answer.refusal is not None:
        return {"error_code": group_code(answer.refusal), "throttle_time": 0, "topics": ()}
    codes = map(group_code, answer.partitions)
    unknown = ErrorCode.unknown_topic_or_partition
    return {
        "error_code": ErrorCode.none,
        "throttle_time": 0,
        "topics": tuple(
            {
                "name": topic.name,
                "partitions": tuple(
                    {"partition_index": row.partition_index, "error_code": unknown if view is None else next(codes)}
                    for row in topic.partitions
                ),
            }
            for topic, view in zip(request.topics, views, strict=True)
        ),
    }


async def _delete(group_id: str, partitions: list[tuple[TopicId, int]], agent: Agent) -> OffsetDeleteAnswer:
    if not group_id:
        return OffsetDeleteAnswer(Refusal.INVALID_GROUP_ID)
    try:
        return await agent.metadata.delete_offsets(group_id, partitions)
    except MetadataUnavailable:
        return OffsetDeleteAnswer(UNAVAILABLE)
