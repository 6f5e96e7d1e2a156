"""OffsetFetch (key 9), versions 1-9: KIP-88 (all partitions, version 2), KIP-320 (leader epoch, version 5), KIP-447
(require stable, version 7), KIP-709 (many groups, version 8), KIP-848 (member id and epoch, version 9).

Never older than a commit that was answered. A partition without a committed offset, and so every partition of an
unknown topic or group, is answered with offset -1 and no error, as Kafka does: an error would stop Java consumers.
What comes twice (a group, a topic, a partition) is answered once, where it came first.

Groups beyond what one answer may carry are COORDINATOR_LOAD_IN_PROGRESS: tools then ask again, for these alone.

Left out: pending transactional offsets, so every offset is stable (version 7); the member id and epoch (version 9)
only mean something to KIP-848 groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from agent.handlers.answer_limit import AnswerLimit
from agent.topics import TopicDirectory
from metadata.group_model import OffsetRecord
from metadata.model import MetadataUnavailable, Refusal

NO_OFFSET = -1
NO_LEADER_EPOCH = -1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Look up one group, or from version 8 on any number of them."""
    limit = AnswerLimit()
    if call.api_version < 8:
        return await _group(request, agent, limit)
    rows: dict[str, Body] = {}
    for group in request.groups:
        if group.group_id in rows:
            continue
        if limit.reached():
            found: Body = {"error_code": group_code(Refusal.COORDINATOR_LOAD_IN_PROGRESS), "topics": ()}
        else:
            found = await _group(group, agent, limit)
        rows[group.group_id] = {"group_id": group.group_id, **found}
        if limit.add(len(group.group_id)):
            await limit.pause()
    return {"groups": tuple(rows.values())}


async def _group(wanted: Any, agent: Agent, limit: AnswerLimit) -> Body:
    """Topics and error code of one group; ``wanted`` names it, and its topics (None: all that it has)."""
    partitions = None
    if wanted.topics is not None:
        indexes: dict[str, dict[int, None]] = {}
        for topic in wanted.topics:
            indexes.setdefault(topic.name, {}).update(dict.fromkeys(topic.partition_indexes))
        views = {name: agent.topics.by_name(name) for name in indexes}
        partitions = [
            (view.topic_id, partition)
            for name, view in views.items()
            if view is not None
            for partition in indexes[name]
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
        return {"error_code": code, "topics": await _all_topics(found, agent.topics, limit)}
    by_partition = {(record.topic_id, record.partition): record for record in found}
    rows: list[Body] = []
    for name, view in views.items():
        row: list[Body] = []
        for partition in indexes[name]:
            record = by_partition.get((view.topic_id, partition)) if view is not None else None
            row.append(_row(partition, record, code))
            if limit.add(0 if record is None else len(record.metadata)):
                await limit.pause()
        rows.append({"name": name, "partitions": tuple(row)})
    return {"error_code": code, "topics": tuple(rows)}


async def _all_topics(found: Iterable[OffsetRecord], topics: TopicDirectory, limit: AnswerLimit) -> tuple[Body, ...]:
    by_name: dict[str, list[Body]] = {}
    for record in found:
        view = topics.by_id(record.topic_id)
        if view is not None:
            by_name.setdefault(view.name, []).append(_row(record.partition, record, ErrorCode.none))
            if limit.add(len(record.metadata)):
                await limit.pause()
    return tuple({"name": name, "partitions": tuple(rows)} for name, rows in by_name.items())


def _row(partition: int, record: OffsetRecord | None, code: ErrorCode) -> Body:
    return {
        "partition_index": partition,
        "committed_offset": NO_OFFSET if record is None else record.offset,
        "committed_leader_epoch": NO_LEADER_EPOCH if record is None else record.leader_epoch,
        "metadata": "" if record is None else record.metadata,
        "error_code": code,
    }
