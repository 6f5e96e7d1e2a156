"""OffsetCommit (key 8), versions 2-9: KIP-211 (no retention time, version 5), KIP-320 (leader epoch, version 6),
KIP-345 (static members, version 7), KIP-848 (GROUP_ID_NOT_FOUND, version 9).

A partition that cannot be committed does not disturb the others; what is wrong with the group or the member is every
partition's error. The answer comes when the offsets are durable.

Left out: the retention time of versions 2-4 (the cluster's own holds, as on Kafka since 2.1 by default).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from metadata.group_model import OffsetCommit, OffsetCommitAnswer, OffsetRecord
from metadata.model import MetadataUnavailable, Refusal, TopicId

NO_LEADER_EPOCH = -1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Commit what can be committed, and answer every partition in the request's order."""
    views = [agent.topics.by_name(topic.name) for topic in request.topics]
    offsets = tuple(
        _offset(view.topic_id, row)
        for topic, view in zip(request.topics, views, strict=True)
        if view is not None
        for row in topic.partitions
    )
    codes = iter(await _commit(call, request, offsets, agent) if offsets else ())
    unknown = ErrorCode.unknown_topic_or_partition
    return {
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


def _offset(topic_id: TopicId, row: Any) -> OffsetRecord:
    return OffsetRecord(
        topic_id=topic_id,
        partition=row.partition_index,
        offset=row.committed_offset,
        leader_epoch=getattr(row, "committed_leader_epoch", NO_LEADER_EPOCH),
        metadata=row.committed_metadata or "",
        commit_ms=0,
    )


async def _commit(call: Call, request: Any, offsets: tuple[OffsetRecord, ...], agent: Agent) -> list[ErrorCode]:
    """One code per offset."""
    commit = OffsetCommit(
        group_id=request.group_id,
        generation_id=request.generation_id_or_member_epoch,
        member_id=request.member_id,
        group_instance_id=getattr(request, "group_instance_id", None),
        offsets=offsets,
    )
    try:
        answer = await agent.metadata.commit_offsets(commit)
    except MetadataUnavailable:
        answer = OffsetCommitAnswer(UNAVAILABLE)
    if answer.refusal is None:
        return [group_code(refusal) for refusal in answer.offsets]
    refusal = answer.refusal
    if refusal is Refusal.GROUP_ID_NOT_FOUND and call.api_version < 9:
        refusal = Refusal.ILLEGAL_GENERATION
    return [group_code(refusal)] * len(offsets)
