"""Metadata (key 3), versions 0-13: KIP-4, KIP-204 (controller id), KIP-430, KIP-516 (topic ids), KIP-700.

- An empty list means all topics in version 0 and none later; null means all.
- A topic that is missing is created (``auto.create.topics.enable``) unless the client forbids it (version 4+), and is
  answered at once: no round of LEADER_NOT_AVAILABLE.
- The brokers are the agents of the client's zone and group (:mod:`agent.routing`), the leader of a partition, its only
  replica and its ISR one of them, with leader epoch 0: any agent serves any partition. A single agent of another zone
  that cannot be reached is not the only one named (:mod:`agent.neighbours`). The controller is this agent
  when it is named, for any agent can be it. The rack is always null, because racks made half-configured consumers
  rebalance without end.
- Topic ids may be asked for from version 12 on, as in Kafka; before, a request that names one is INVALID_REQUEST.
- Large answers are made one at a time, with turns for everybody else in between.

Left out: authorized operations (always "not known").
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, NamedTuple

from kio.schema.errors import ErrorCode

from agent.context import Agent, Call
from agent.errors import error_code
from agent.routing import CHUNK_PARTITIONS, Route
from agent.wire.codec import EncodedResponse
from agent.wire.metadata_codec import MetadataResponse
from metadata.model import MetadataError, Refusal, Refused, Topic
from metadata.topics import check_topic_name

TOPIC_IDS_FROM_VERSION = 12
CREATED_PER_REQUEST_MAX = 1_000
"""Topics one request may create; for the rest it is LEADER_NOT_AVAILABLE, and the client asks again."""
PAUSE_EVERY = 2_048
"""Topics and partitions, after which everybody else has a turn: ten milliseconds with thirty agents, once for each
roster, and one or two later on."""
NO_TOPIC_ID = bytes(16)


class _Row(NamedTuple):
    """A topic of the answer; without a ``topic`` it is refused with ``code``."""

    name: str | None
    topic_id: bytes
    topic: Topic | None
    code: ErrorCode


async def handle(call: Call, request: Any, agent: Agent) -> EncodedResponse:
    """Answer from the agent's views of topics and agents; ask the metadata service only to create missing topics."""
    wanted = request.topics
    if wanted is None or (call.api_version == 0 and not wanted):
        rows = [_found(view.topic) for view in agent.topics.all()]
    elif any(_is_malformed(topic, call.api_version) for topic in wanted):
        rows = [_Row(topic.name or "", NO_TOPIC_ID, None, ErrorCode.invalid_request) for topic in wanted]
    else:
        rows = await _named(request, agent)
    work = sum(1 if row.topic is None else 1 + row.topic.partition_count for row in rows)
    if work <= PAUSE_EVERY:
        body = await _encoded(call, rows, agent)
    else:
        async with agent.large_answers:
            body = await _encoded(call, rows, agent)
    return EncodedResponse([body], len(body))


async def _encoded(call: Call, rows: list[_Row], agent: Agent) -> bytearray:
    identity = agent.identity
    route = agent.roster.route_for(call)
    endpoints = route.endpoints
    lone = agent.roster.lone_neighbour(call, route)
    if lone is not None and not await agent.neighbours.is_reachable(lone):
        endpoints = tuple(sorted((*endpoints, agent.roster.own_endpoint)))
    response = MetadataResponse(
        call.api_version, endpoints, identity.cluster_id, controller_id(route, identity.node_id), len(rows)
    )
    work = 0
    for row in rows:
        if work >= PAUSE_EVERY:
            work = 0
            await asyncio.sleep(0)
        work += 1
        if row.topic is None:
            response.topic(row.code, row.name, row.topic_id, 0)
            continue
        count = row.topic.partition_count
        response.topic(0, row.name, row.topic_id, count)
        for chunk in range(-(-count // CHUNK_PARTITIONS)):
            if work >= PAUSE_EVERY:
                work = 0
                await asyncio.sleep(0)
            leaders = route.leaders(row.topic_id, count, chunk)
            response.partitions(chunk * CHUNK_PARTITIONS, leaders)
            work += len(leaders)
    return response.end()


def controller_id(route: Route, own: int) -> int:
    """A broker of the answer, for whoever wants to ask the controller."""
    named = [endpoint.node_id for endpoint in route.endpoints]
    return own if own in named else named[0]


def _is_malformed(topic: Any, version: int) -> bool:
    if version >= TOPIC_IDS_FROM_VERSION:
        return topic.name is None and topic.topic_id is None
    return topic.name is None or getattr(topic, "topic_id", None) is not None


async def _named(request: Any, agent: Agent) -> list[_Row]:
    names = dict.fromkeys(topic.name for topic in request.topics if getattr(topic, "topic_id", None) is None)
    ids = dict.fromkeys(topic.topic_id for topic in request.topics if getattr(topic, "topic_id", None) is not None)
    rows = []
    for number, topic_id in enumerate(ids, 1):
        rows.append(_by_id(topic_id, agent))
        if number % PAUSE_EVERY == 0:
            await asyncio.sleep(0)
    may_create = agent.settings.topics.auto_create and getattr(request, "allow_auto_topic_creation", True)
    missing: list[str] = []
    for number, name in enumerate(names, 1):
        if number % PAUSE_EVERY == 0:
            await asyncio.sleep(0)
        view = agent.topics.by_name(name)
        if view is not None:
            rows.append(_found(view.topic))
        elif (problem := _name_problem(name)) is not None:
            rows.append(_Row(name, NO_TOPIC_ID, None, problem))
        elif not may_create:
            rows.append(_Row(name, NO_TOPIC_ID, None, ErrorCode.unknown_topic_or_partition))
        elif len(missing) < CREATED_PER_REQUEST_MAX:
            missing.append(name)
        else:
            rows.append(_Row(name, NO_TOPIC_ID, None, ErrorCode.leader_not_available))
    rows.extend(await asyncio.gather(*(_created(name, agent) for name in missing)))
    return rows


def _found(topic: Topic) -> _Row:
    return _Row(topic.name, topic.topic_id, topic, ErrorCode.none)


def _by_id(topic_id: uuid.UUID, agent: Agent) -> _Row:
    view = agent.topics.by_id(topic_id.bytes)
    return _Row(None, topic_id.bytes, None, ErrorCode.unknown_topic_id) if view is None else _found(view.topic)


def _name_problem(name: str) -> ErrorCode | None:
    try:
        check_topic_name(name)
    except Refused as refused:
        return error_code(refused.refusal)
    return None


async def _created(name: str, agent: Agent) -> _Row:
    """Create ``name`` with the defaults. Repeating it after an unknown outcome is safe."""
    try:
        topic = await agent.metadata.create_topic(name, agent.settings.topics.partitions, {})
    except Refused as refused:
        if refused.refusal is not Refusal.TOPIC_ALREADY_EXISTS:
            return _Row(name, NO_TOPIC_ID, None, error_code(refused.refusal))
        view = agent.topics.by_name(name)
        if view is None:  # somebody else was first, and our view has not heard of it yet
            return _Row(name, NO_TOPIC_ID, None, ErrorCode.leader_not_available)
        topic = view.topic
    except MetadataError:
        return _Row(name, NO_TOPIC_ID, None, ErrorCode.leader_not_available)
    return _found(topic)
