"""DeleteTopics (key 20), versions 1-6: KIP-4, KIP-516 (by topic id, version 6), KIP-599 (messages, version 5).

The topic's records are unreadable, and its groups' offsets gone, when the answer is sent. For a while it can be
brought back (:mod:`agent.deleted_topics`), then its bytes go (RFC 6).
A topic that comes twice in a request is INVALID_REQUEST, and is not deleted.

Left out: the request's timeout (an answer takes as long as one metadata transaction).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import failure_code
from metadata.model import MetadataError, Refusal, Refused, TopicId


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One entry of the request: by name, or by id."""

    name: str | None
    topic_id: uuid.UUID | None


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Delete every topic of the request on its own: one that fails does not disturb the others."""
    if call.api_version >= 6:
        entries = [_Wanted(topic.name, topic.topic_id) for topic in request.topics]
    else:
        entries = [_Wanted(name, None) for name in request.topic_names]
    counts = Counter(_resolved(entry, agent) or entry for entry in entries)
    distinct = {_resolved(entry, agent) or entry: entry for entry in entries}
    rows = await asyncio.gather(*(_delete(entry, counts[key] > 1, agent) for key, entry in distinct.items()))
    return {"throttle_time": 0, "responses": tuple(rows)}


def _resolved(entry: _Wanted, agent: Agent) -> TopicId | None:
    if entry.topic_id is not None:
        return entry.topic_id.bytes
    view = agent.topics.by_name(entry.name) if entry.name is not None else None
    return view.topic_id if view is not None else None


async def _delete(entry: _Wanted, is_duplicate: bool, agent: Agent) -> Body:
    if (entry.name is None) == (entry.topic_id is None):
        return _row(entry, ErrorCode.invalid_request, "Name a topic either by its name or by its id.")
    if is_duplicate:
        return _row(entry, ErrorCode.invalid_request, "The request names this topic more than once.")
    topic_id = _resolved(entry, agent)
    if topic_id is None:
        return _row(entry, ErrorCode.unknown_topic_or_partition, "This server does not host this topic-partition.")
    view = agent.topics.by_id(topic_id)
    try:
        await agent.metadata.delete_topic(topic_id)
    except Refused as refused:
        code = failure_code(refused)
        if refused.refusal is Refusal.UNKNOWN_TOPIC_ID and entry.name is not None:
            code = ErrorCode.unknown_topic_or_partition
        return _row(entry, code, str(refused))
    except MetadataError as error:
        return _row(entry, failure_code(error), str(error))
    return {
        "name": view.name if view is not None else entry.name,
        "topic_id": uuid.UUID(bytes=topic_id),
        "error_code": ErrorCode.none,
        "error_message": None,
    }


def _row(entry: _Wanted, code: ErrorCode, message: str) -> Body:
    return {"name": entry.name, "topic_id": entry.topic_id, "error_code": code, "error_message": message}
