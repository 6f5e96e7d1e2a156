"""OffsetForLeaderEpoch (key 23), versions 2 to 4.

KIP-101 and KIP-320. Any agent serves any partition and the log never diverges, so the leader epoch is always 0: asked
for epoch 0 the answer is (0, log end offset); other epochs never existed, which Kafka answers with (-1, -1) and no
error (``LeaderEpochFileCache.endOffsetFor``). Left out: the distinction between replicas and consumers (v3).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.fetch.patch import LEADER_EPOCH
from metadata.model import MetadataUnavailable, PartitionOffsets, TopicId

NO_EPOCH = -1
UNDEFINED = -1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    queries: list[tuple[TopicId, int]] = []
    for topic in request.topics:
        view = agent.topics.by_name(topic.topic)
        if view is not None:
            queries.extend((view.topic_id, partition.partition) for partition in topic.partitions)
    failure = ErrorCode.unknown_topic_or_partition
    offsets: dict[tuple[TopicId, int], PartitionOffsets | None] = {}
    try:
        if queries:
            offsets = dict(zip(queries, await agent.metadata.partition_offsets(queries), strict=True))
    except MetadataUnavailable:
        failure = ErrorCode.kafka_storage_error
    topics = []
    for topic in request.topics:
        view = agent.topics.by_name(topic.topic)
        entries = []
        for partition in topic.partitions:
            found = offsets.get((view.topic_id, partition.partition)) if view is not None else None
            entries.append(_entry(partition, found, failure))
        topics.append({"topic": topic.topic, "partitions": tuple(entries)})
    return {"throttle_time": 0, "topics": tuple(topics)}


def leader_epoch_error(partition: Any) -> ErrorCode | None:
    """What Kafka answers to the ``current_leader_epoch`` a client believes in, if the request's version has it."""
    leader_epoch = getattr(partition, "current_leader_epoch", NO_EPOCH)
    if leader_epoch > LEADER_EPOCH:
        return ErrorCode.unknown_leader_epoch
    return ErrorCode.fenced_leader_epoch if leader_epoch < NO_EPOCH else None


def _entry(partition: Any, found: PartitionOffsets | None, failure: ErrorCode) -> Body:
    code = failure if found is None else leader_epoch_error(partition)
    epoch, end_offset = UNDEFINED, UNDEFINED
    if code is None and found is not None and partition.leader_epoch == LEADER_EPOCH:
        epoch, end_offset = LEADER_EPOCH, found.high_watermark
    return {
        "error_code": ErrorCode.none if code is None else code,
        "partition": partition.partition,
        "leader_epoch": epoch,
        "end_offset": end_offset,
    }
