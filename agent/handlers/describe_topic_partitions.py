"""DescribeTopicPartitions (key 75), version 0: KIP-966. What newer tools ask instead of Metadata, in pages.

Topics come by name, up to 2,000 partitions in an answer (fewer if the request wants so), and the cursor says where the
next one begins. Without names all topics are meant.

As in Metadata, the leader is a partition's only replica, by the client's zone; nobody is eligible to follow it.

Left out: authorized operations (there is no authorizer).
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import error_code
from agent.routing import CHUNK_PARTITIONS, Route
from agent.topics import TopicView
from agent.wire.metadata_codec import OPERATIONS_UNKNOWN
from metadata.model import Refused
from metadata.topics import check_topic_name

PARTITIONS_MAX: Final = 2_000
"""Kafka's max.request.partition.size.limit."""
LEADER_EPOCH: Final = 0
PAUSE_EVERY: Final = 1_000
"""Topics, after which everybody else has a turn."""


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Answer from this agent's views of topics and agents."""
    names = _names(request, agent)
    if names is None:
        rows = tuple(_refused(topic.name, ErrorCode.invalid_request) for topic in request.topics)
        return {"throttle_time": 0, "topics": rows, "next_cursor": None}
    route = agent.roster.route_for(call)
    remaining = max(min(PARTITIONS_MAX, request.response_partition_limit), 1)
    topics: list[Body] = []
    next_cursor: Body | None = None
    for position, name in enumerate(names, 1):
        if remaining == 0:
            next_cursor = {"topic_name": name, "partition_index": 0}
            break
        if position % PAUSE_EVERY == 0:
            await asyncio.sleep(0)
        view = agent.topics.by_name(name)
        if view is None:
            if request.topics:
                topics.append(_refused(name, _why_absent(name)))
            continue
        first = request.cursor.partition_index if request.cursor and request.cursor.topic_name == name else 0
        end = min(first + remaining, view.partition_count)
        topics.append(_topic(view, first, end, route))
        remaining -= max(end - first, 0)
        if end < view.partition_count:
            next_cursor = {"topic_name": name, "partition_index": end}
            break
    return {"throttle_time": 0, "topics": tuple(topics), "next_cursor": next_cursor}


def _names(request: Any, agent: Agent) -> list[str] | None:
    """The names of this answer's topics and those after it, in order; None: the request contradicts itself."""
    names = {topic.name for topic in request.topics} if request.topics else {view.name for view in agent.topics.all()}
    cursor = request.cursor
    if cursor is None:
        return sorted(names)
    if cursor.partition_index < 0 or (request.topics and cursor.topic_name not in names):
        return None
    return sorted(name for name in names if name >= cursor.topic_name)


def _topic(view: TopicView, first: int, end: int, route: Route) -> Body:
    partitions: list[Body] = []
    for chunk in range(first // CHUNK_PARTITIONS, -(-end // CHUNK_PARTITIONS)):
        leaders = route.leaders(view.topic_id, view.partition_count, chunk)
        for number, leader in enumerate(leaders, chunk * CHUNK_PARTITIONS):
            if first <= number < end:
                partitions.append(_partition(number, leader))
    return {
        "error_code": ErrorCode.none,
        "name": view.name,
        "topic_id": view.uuid,
        "is_internal": False,
        "partitions": tuple(partitions),
        "topic_authorized_operations": OPERATIONS_UNKNOWN,
    }


def _partition(number: int, leader: int) -> Body:
    return {
        "error_code": ErrorCode.none,
        "partition_index": number,
        "leader_id": leader,
        "leader_epoch": LEADER_EPOCH,
        "replica_nodes": (leader,),
        "isr_nodes": (leader,),
        "eligible_leader_replicas": (),
        "last_known_elr": (),
        "offline_replicas": (),
    }


def _why_absent(name: str) -> ErrorCode:
    try:
        check_topic_name(name)
    except Refused as refused:
        return error_code(refused.refusal)
    return ErrorCode.unknown_topic_or_partition


def _refused(name: str, code: ErrorCode) -> Body:
    return {
        "error_code": code,
        "name": name,
        "topic_id": uuid.UUID(int=0),
        "is_internal": False,
        "partitions": (),
        "topic_authorized_operations": OPERATIONS_UNKNOWN,
    }
