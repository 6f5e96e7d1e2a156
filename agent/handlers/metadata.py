"""Metadata (key 3), versions 0-13: KIP-4, KIP-204 (controller id), KIP-430, KIP-516 (topic ids), KIP-700.

- An empty list means all topics in version 0 and none later; null means all.
- A topic that is missing is created (``auto.create.topics.enable``) unless the client forbids it (version 4+), and is
  answered at once: no round of LEADER_NOT_AVAILABLE.
- Every partition's leader, replica set and ISR is this agent, with leader epoch 0: any agent serves any partition. The
  rack is always null, because racks made half-configured consumers rebalance without end.
- Topic ids may be asked for from version 12 on, as in Kafka; before, a request that names one is INVALID_REQUEST.

Left out: authorized operations (always "not known"), and other agents (there is one).
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import error_code
from metadata.model import MetadataError, Refusal, Refused, Topic
from metadata.state import check_topic_name

OPERATIONS_UNKNOWN = -(2**31)
TOPIC_IDS_FROM_VERSION = 12
CREATED_PER_REQUEST_MAX = 1_000
"""Topics one request may create; for the rest it is LEADER_NOT_AVAILABLE, and the client asks again."""


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Answer from the agent's own view of topics; ask the metadata service only to create missing ones."""
    wanted = request.topics
    if wanted is None or (call.api_version == 0 and not wanted):
        rows = [_described(view.topic, agent) for view in agent.topics.all()]
    elif any(_is_malformed(topic, call.api_version) for topic in wanted):
        rows = [_refused(topic.name or "", None, ErrorCode.invalid_request) for topic in wanted]
    else:
        rows = await _named(call, request, agent)
    identity = agent.identity
    return {
        "throttle_time": 0,
        "brokers": ({"node_id": identity.node_id, "host": identity.host, "port": identity.port, "rack": None},),
        "cluster_id": identity.cluster_id,
        "controller_id": identity.node_id,
        "topics": tuple(rows),
        "cluster_authorized_operations": OPERATIONS_UNKNOWN,
        "error_code": ErrorCode.none,
    }


def _is_malformed(topic: Any, version: int) -> bool:
    if version >= TOPIC_IDS_FROM_VERSION:
        return topic.name is None and topic.topic_id is None
    return topic.name is None or getattr(topic, "topic_id", None) is not None


async def _named(call: Call, request: Any, agent: Agent) -> list[Body]:
    names = dict.fromkeys(topic.name for topic in request.topics if getattr(topic, "topic_id", None) is None)
    ids = dict.fromkeys(topic.topic_id for topic in request.topics if getattr(topic, "topic_id", None) is not None)
    rows = [_by_id(topic_id, agent) for topic_id in ids]
    may_create = agent.settings.topics.auto_create and getattr(request, "allow_auto_topic_creation", True)
    missing: list[str] = []
    for name in names:
        view = agent.topics.by_name(name)
        if view is not None:
            rows.append(_described(view.topic, agent))
        elif (problem := _name_problem(name)) is not None:
            rows.append(_refused(name, None, problem))
        elif not may_create:
            rows.append(_refused(name, None, ErrorCode.unknown_topic_or_partition))
        elif len(missing) < CREATED_PER_REQUEST_MAX:
            missing.append(name)
        else:
            rows.append(_refused(name, None, ErrorCode.leader_not_available))
    rows.extend(await asyncio.gather(*(_created(name, agent) for name in missing)))
    return rows


def _by_id(topic_id: uuid.UUID, agent: Agent) -> Body:
    view = agent.topics.by_id(topic_id.bytes)
    if view is None:
        return _refused(None, topic_id, ErrorCode.unknown_topic_id)
    return _described(view.topic, agent)


def _name_problem(name: str) -> ErrorCode | None:
    try:
        check_topic_name(name)
    except Refused as refused:
        return error_code(refused.refusal)
    return None


async def _created(name: str, agent: Agent) -> Body:
    """Create ``name`` with the defaults. Repeating it after an unknown outcome is safe."""
    try:
        topic = await agent.metadata.create_topic(name, agent.settings.topics.partitions, {})
    except Refused as refused:
        if refused.refusal is not Refusal.TOPIC_ALREADY_EXISTS:
            return _refused(name, None, error_code(refused.refusal))
        view = agent.topics.by_name(name)
        if view is None:  # somebody else was first, and our view has not heard of it yet
            return _refused(name, None, ErrorCode.leader_not_available)
        topic = view.topic
    except MetadataError:
        return _refused(name, None, ErrorCode.leader_not_available)
    return _described(topic, agent)


def _refused(name: str | None, topic_id: uuid.UUID | None, code: ErrorCode) -> Body:
    return {
        "error_code": code,
        "name": name,
        "topic_id": topic_id,
        "is_internal": False,
        "partitions": (),
        "topic_authorized_operations": OPERATIONS_UNKNOWN,
    }


def _described(topic: Topic, agent: Agent) -> Body:
    node_id = agent.identity.node_id
    nodes = (node_id,)
    return {
        "error_code": ErrorCode.none,
        "name": topic.name,
        "topic_id": uuid.UUID(bytes=topic.topic_id),
        "is_internal": False,
        "partitions": tuple(
            {
                "error_code": ErrorCode.none,
                "partition_index": index,
                "leader_id": node_id,
                "leader_epoch": 0,
                "replica_nodes": nodes,
                "isr_nodes": nodes,
                "offline_replicas": (),
            }
            for index in range(topic.partition_count)
        ),
        "topic_authorized_operations": OPERATIONS_UNKNOWN,
    }
