"""CreatePartitions (key 37), versions 0-3: KIP-195, KIP-599 (throttling, version 3).

A topic only grows; what it has stays where it is, and records with a key may go to another partition from then on, as
on Kafka. Other agents hear of the new partitions a moment later.

A manual assignment is accepted when it names as many partitions as are added, and only brokers that exist. A topic that
comes twice in a request is INVALID_REQUEST, and does not grow.

Left out: the request's timeout (an answer takes as long as one metadata transaction).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import named_failure_code
from agent.handlers.create_topics import broker_ids, check_replicas
from agent.topics import TopicView
from metadata.model import MetadataError, Refusal, Refused


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Let every topic of the request grow on its own: one that fails does not disturb the others."""
    counts = Counter(topic.name for topic in request.topics)
    wanted = {topic.name: topic for topic in request.topics}
    rows = await asyncio.gather(
        *(_grow(topic, counts[name] > 1, request.validate_only, agent) for name, topic in wanted.items())
    )
    return {"throttle_time": 0, "results": tuple(rows)}


async def _grow(wanted: Any, is_duplicate: bool, validate_only: bool, agent: Agent) -> Body:
    try:
        if is_duplicate:
            raise Refused(Refusal.INVALID_REQUEST, "Duplicate topic name.")
        view = agent.topics.by_name(wanted.name)
        if view is None:
            raise Refused(Refusal.UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.")
        if wanted.assignments is not None:
            _check_assignments(wanted, view, broker_ids(agent))
        await agent.metadata.create_partitions(view.topic_id, wanted.count, validate_only)
    except MetadataError as error:
        return {"name": wanted.name, "error_code": named_failure_code(error), "error_message": str(error)}
    return {"name": wanted.name, "error_code": ErrorCode.none, "error_message": None}


def _check_assignments(wanted: Any, view: TopicView, node_ids: set[int]) -> None:
    """:raises Refused: INVALID_REPLICA_ASSIGNMENT. Whether the topic would grow is the metadata service's to say."""
    additional = wanted.count - view.partition_count
    if additional <= 0:
        return
    if len(wanted.assignments) != additional:
        raise Refused(
            Refusal.INVALID_REPLICA_ASSIGNMENT,
            f"Attempted to add {additional} additional partition(s), but only {len(wanted.assignments)} assignment(s)"
            " were specified.",
        )
    for partition, row in enumerate(wanted.assignments, view.partition_count):
        check_replicas(partition, row.broker_ids, node_ids)
