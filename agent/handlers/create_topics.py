"""CreateTopics (key 19), versions 2-7: KIP-4, KIP-464 (defaults with -1), KIP-525 (configs in the answer), KIP-516.

- Any replication factor from 1 up, or -1, is accepted: tools ask for the factor their Kafka cluster has, and the object
  store keeps the copies here. The answer, like Metadata, shows 1.
- A manual assignment is accepted when it names the partitions 0..n-1 and only brokers that exist.
- A name that comes twice in a request is INVALID_REQUEST, and none of its entries is created.

The configs of topics beyond what one answer may carry are not shown: their config error is INVALID_REQUEST.

Left out: the request's timeout (an answer takes as long as one metadata transaction).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import failure_code
from agent.handlers.answer_limit import AnswerLimit
from agent.handlers.describe_configs import creation_rows
from metadata.model import MetadataError, Refusal, Refused, Topic

DEFAULT = -1
CONFIG_BYTES = 64
"""Roughly what one config takes in the answer."""


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Create every topic of the request on its own: one that fails does not disturb the others."""
    counts = Counter(topic.name for topic in request.topics)
    once = [topic for topic in request.topics if counts[topic.name] == 1]
    limit = AnswerLimit()
    rows = await asyncio.gather(*(_create(topic, request.validate_only, agent, limit) for topic in once))
    twice = [_refused(name, ErrorCode.invalid_request, "Duplicate topic name.") for name in counts if counts[name] > 1]
    return {"throttle_time": 0, "topics": (*rows, *twice)}


async def _create(wanted: Any, validate_only: bool, agent: Agent, limit: AnswerLimit) -> Body:
    try:
        topic = await agent.metadata.create_topic(
            wanted.name, _partition_count(wanted, agent), _configs(wanted), validate_only
        )
    except Refused as refused:
        return _refused(wanted.name, failure_code(refused), str(refused))
    except MetadataError as error:
        return _refused(wanted.name, failure_code(error), str(error))
    row = _created(topic, validate_only)
    if limit.reached():
        return {**row, "topic_config_error_code": ErrorCode.invalid_request, "configs": None}
    row["configs"] = creation_rows(topic.configs)
    if limit.add(len(row["configs"]) * CONFIG_BYTES):
        await limit.pause()
    return row


def _partition_count(wanted: Any, agent: Agent) -> int:
    """How many partitions are asked for. :raises Refused: Kafka's rules, in its words."""
    if wanted.assignments:
        if wanted.num_partitions != DEFAULT or wanted.replication_factor != DEFAULT:
            raise Refused(
                Refusal.INVALID_REQUEST,
                "Both numPartitions or replicationFactor and replicasAssignments were set. Both cannot be used at the "
                "same time.",
            )
        _check_assignments(wanted.assignments, broker_ids(agent))
        return len(wanted.assignments)
    if wanted.replication_factor < 1 and wanted.replication_factor != DEFAULT:
        raise Refused(
            Refusal.INVALID_REPLICATION_FACTOR,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        )
    if wanted.num_partitions == DEFAULT:
        return agent.settings.topics.partitions
    if wanted.num_partitions < 1:
        raise Refused(
            Refusal.INVALID_PARTITIONS,
            "Number of partitions was set to an invalid non-positive value.",
        )
    return int(wanted.num_partitions)


def _check_assignments(assignments: Any, node_ids: set[int]) -> None:
    if sorted(row.partition_index for row in assignments) != list(range(len(assignments))):
        raise Refused(
            Refusal.INVALID_REPLICA_ASSIGNMENT,
            "partitions should be a consecutive 0-based integer sequence",
        )
    for row in assignments:
        check_replicas(row.partition_index, row.broker_ids, node_ids)


def broker_ids(agent: Agent) -> set[int]:
    """Everybody whom a manual assignment may name."""
    return {agent.identity.node_id, *(known.node_id for known in agent.roster.agents)}


def check_replicas(partition: int, replicas: Sequence[int], node_ids: set[int]) -> None:
    """What a manual assignment gives to one partition. :raises Refused: INVALID_REPLICA_ASSIGNMENT."""
    if not replicas:
        raise Refused(
            Refusal.INVALID_REPLICA_ASSIGNMENT,
            f"The manual partition assignment of partition {partition} includes no brokers.",
        )
    for broker_id in replicas:
        if broker_id not in node_ids:
            raise Refused(
                Refusal.INVALID_REPLICA_ASSIGNMENT,
                f"The manual partition assignment includes broker {broker_id}, but no such broker is registered.",
            )
    if len(set(replicas)) != len(replicas):
        raise Refused(
            Refusal.INVALID_REPLICA_ASSIGNMENT,
            f"The manual partition assignment of partition {partition} names a broker twice.",
        )


def _configs(wanted: Any) -> dict[str, str]:
    nulls = sorted(config.name for config in wanted.configs if config.value is None)
    if nulls:
        raise Refused(Refusal.INVALID_CONFIG, f"Null value not supported for topic configs: {','.join(nulls)}")
    return {config.name: config.value for config in wanted.configs}


def _refused(name: str, code: ErrorCode, message: str) -> Body:
    return {
        "name": name,
        "topic_id": None,
        "error_code": code,
        "error_message": message,
        "num_partitions": -1,
        "replication_factor": -1,
        "configs": (),
    }


def _created(topic: Topic, validate_only: bool) -> Body:
    return {
        "name": topic.name,
        "topic_id": None if validate_only else uuid.UUID(bytes=topic.topic_id),
        "error_code": ErrorCode.none,
        "error_message": None,
        "num_partitions": topic.partition_count,
        "replication_factor": 1,
        "configs": (),
    }
