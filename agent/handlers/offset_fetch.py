"""OffsetFetch (key 9), versions 1-9: KIP-88 (all partitions, version 2), KIP-320 (leader epoch, version 5), KIP-447
(require stable, version 7), KIP-709 (many groups, version 8), KIP-848 (member id and epoch, version 9).

Never older than a commit that was answered. A partition without a committed offset, and so every partition of an
unknown topic or group, is answered with offset -1 and no error, as Kafka does: an error would stop Java consumers.

Left out: pending transactional offsets, so every offset is stable (version 7); the member id and epoch (version 9)
only mean something to KIP-848 groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from agent.topics import TopicDirectory
from metadata.group_model import OffsetRecord
from metadata.model import MetadataUnavailable

NO_OFFSET = -1
NO_LEADER_EPOCH = -1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Look up one group, or from version 8 on any number of them."""
    if call.api_version < 8:
        return await _group(request, agent)
    return {"groups": tuple([{"group_id": group.group_id, **await _group(group, agent)} for group in request.groups])}


async def _group(wanted: Any, agent: Agent) -> Body:
    """Topics and error code of one group; ``wanted`` names it, and its topics (None: all that it has)."""
    partitions = None
    if wanted.topics is not None:
        views = [agent.topics.by_name(topic.name) for topic in wanted.topics]
        partitions = [
            (view.topic_id, partition)
            for topic, view in zip(wanted.topics, views, strict=True)
            if view is not None
            for partition in topic.partition_indexes
        ]
    code, found = ErrorCode.none, []
    try:
        if partitions is None or partitions:
            found = await agent.metadata.fetch_offsets(wanted.group_id, partitions)
    except MetadataUnavailable:
        code = group_code(UNAVAILABLE)
        if partitions is None:
            return {"error_code": code, "topics": ()}
    if partitions is None:
        return {"error_code": code, "topics": _all_topics(found, agent.topics)}
    by_partition = {(record.topic_id, record.partition): record for record in found}
    rows = tuple(
        {
            "name": topic.name,
            "partitions": tuple(
                _row(partition, by_partition.get((view.topic_id, partition)) if view is not None else None, code)
                for partition in topic.partition_indexes
            ),
        }
        for topic, view in zip(wanted.topics, views, strict=True)
    )
    return {"error_code": code, "topics": rows}


def _all_topics(found: Iterable[OffsetRecord], topics: TopicDirectory) -> tuple[Body, ...]:
    by_name: dict[str, list[Body]] = {}
    for record in found:
        view = topics.by_id(record.topic_id)
        if view is not None:
            by_name.setdefault(view.name, []).append(_row(record.partition, record, ErrorCode.none))
    return tuple({"name": name, "partitions": tuple(rows)} for name, rows in by_name.items())


def _row(partition: int, record: OffsetRecord | None, code: ErrorCode) -> Body:
    return {
        "partition_index": partition,
        "committed_offset": NO_OFFSET if record is None else record.offset,
        "committed_leader_epoch": NO_LEADER_EPOCH if record is None else record.leader_epoch,
        "metadata": "" if record is None else record.metadata,
        "error_code": code,
    }
