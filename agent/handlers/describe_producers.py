"""DescribeProducers (key 61), version 0: KIP-664.

The idempotent producers that each partition remembers, for a day after their last batch. Any agent answers for any
partition. ``last_timestamp`` is when the last batch was committed (Kafka: the timestamp in it). There are no
transactions, so no producer has a coordinator epoch or an open transaction (-1).

Of a partition with more than 10,000 producers those are shown that it met last. Partitions beyond what one answer may
carry are INVALID_REQUEST.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import error_code, failure_code
from agent.handlers.answer_limit import ANSWER_BYTES_MAX, AnswerLimit
from metadata.model import MetadataError, ProducerDescription, Refused
from metadata.topics import check_topic_name

ASKED_AT_ONCE: Final = 8
"""Partitions; each may have 10,000 producers."""
PRODUCER_BYTES: Final = 40
NONE: Final = -1
TOO_MUCH = f"The answer would exceed {ANSWER_BYTES_MAX >> 20} MiB: ask for fewer partitions at a time."


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Ask the metadata service, some partitions at a time."""
    limit = AnswerLimit()
    topics = []
    for topic in request.topics:
        rows = await _topic(topic.name, topic.partition_indexes, agent, limit)
        topics.append({"name": topic.name, "partitions": tuple(rows)})
    return {"throttle_time": 0, "topics": tuple(topics)}


async def _topic(name: str, numbers: Any, agent: Agent, limit: AnswerLimit) -> list[Body]:
    view = agent.topics.by_name(name)
    if view is None:
        code, message = _why_absent(name)
        return [_refused(number, code, message) for number in numbers]
    rows: list[Body] = []
    remaining = iter(numbers)
    while asked := list(islice(remaining, ASKED_AT_ONCE)):
        if limit.reached():
            rows += [_refused(number, ErrorCode.invalid_request, TOO_MUCH) for number in asked]
            await limit.pause()
            continue
        try:
            described = await agent.metadata.describe_producers([(view.topic_id, number) for number in asked])
        except MetadataError as error:
            rows += [_refused(number, failure_code(error), str(error)) for number in asked]
            continue
        for number, producers in zip(asked, described, strict=True):
            if producers is None:
                rows.append(_refused(number, *_why_absent(name)))
            else:
                rows.append(_partition(number, producers))
                if limit.add(PRODUCER_BYTES * len(producers)):
                    await limit.pause()
    return rows


def _partition(number: int, producers: list[ProducerDescription]) -> Body:
    return {
        "partition_index": number,
        "error_code": ErrorCode.none,
        "error_message": None,
        "active_producers": tuple(
            {
                "producer_id": producer.producer_id,
                "producer_epoch": producer.producer_epoch,
                "last_sequence": producer.last_sequence,
                "last_timestamp": producer.updated_ms,
                "coordinator_epoch": NONE,
                "current_txn_start_offset": NONE,
            }
            for producer in producers
        ),
    }


def _why_absent(name: str) -> tuple[ErrorCode, str]:
    try:
        check_topic_name(name)
    except Refused as refused:
        return error_code(refused.refusal), str(refused)
    return ErrorCode.unknown_topic_or_partition, "This server does not host this topic-partition."


def _refused(number: int, code: ErrorCode, message: str) -> Body:
    return {"partition_index": number, "error_code": code, "error_message": message, "active_producers": ()}
