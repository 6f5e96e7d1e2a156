"""DescribeLogDirs (key 35), versions 1-4: KIP-113, KIP-784 (an error code for all, version 3), KIP-827 (volume sizes,
version 4).

There is one "log dir", the object store, without its size: nobody knows one. An agent answers for the partitions that
it leads among those this client hears of, so that whoever asks every broker, as tools do, sees each partition once. A
partition's size is the bytes of its record batches in the object store, as they lie there (compressed); footers of
segments, and objects that nothing refers to any more, belong to no partition.

Partitions that do not exist are left out, as on Kafka. While the metadata service cannot answer, the log dir has
KAFKA_STORAGE_ERROR.

Left out: version 0, which no client sends, and moving logs between dirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.routing import CHUNK_PARTITIONS, Route
from agent.topics import TopicView
from metadata.model import MetadataUnavailable
from storage.urls import LocalUrl, S3Url, parse_storage_url

ASKED_AT_ONCE: Final = 500
UNKNOWN_BYTES: Final = -1
"""Kafka's DescribeLogDirsResponse.UNKNOWN_VOLUME_BYTES."""


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Ask the metadata service for the sizes of the partitions this agent leads."""
    route = agent.roster.route_for(call)
    led: list[tuple[TopicView, int]] = []
    for view, wanted in _wanted(request.topics, agent):
        led += [(view, number) for number in await _led(view, route, agent) if wanted is None or number in wanted]
    sizes: dict[str, list[Body]] = {}
    code = ErrorCode.none
    remaining = iter(led)
    try:
        while asked := list(islice(remaining, ASKED_AT_ONCE)):
            found = await agent.metadata.partition_bytes([(view.topic_id, number) for view, number in asked])
            for (view, number), size in zip(asked, found, strict=True):
                if size is not None:
                    sizes.setdefault(view.name, []).append(_partition(number, size))
    except MetadataUnavailable:
        sizes, code = {}, ErrorCode.kafka_storage_error
    log_dir = {
        "error_code": code,
        "log_dir": log_dir_name(agent.settings.storage_url()),
        "topics": tuple({"name": name, "partitions": tuple(rows)} for name, rows in sizes.items()),
        "total_bytes": UNKNOWN_BYTES,
        "usable_bytes": UNKNOWN_BYTES,
    }
    return {"throttle_time": 0, "error_code": ErrorCode.none, "results": (log_dir,)}


def log_dir_name(storage_url: str) -> str:
    """The object store's URL without its options: they say how it is reached, which is nobody's business."""
    match parse_storage_url(storage_url):
        case S3Url(bucket=bucket, prefix=prefix):
            return f"s3://{bucket}/{prefix}"
        case LocalUrl(root=root):
            return str(root)
        case _:
            return "memory://"


def _wanted(topics: Any, agent: Agent) -> Iterable[tuple[TopicView, set[int] | None]]:
    """The topics asked for, each once, with the partitions asked for (None: all)."""
    if topics is None:
        return [(view, None) for view in agent.topics.all()]
    partitions: dict[str, set[int]] = {}
    for topic in topics:
        partitions.setdefault(topic.topic, set()).update(topic.partitions)
    found = ((agent.topics.by_name(name), numbers) for name, numbers in partitions.items())
    return [(view, numbers) for view, numbers in found if view is not None]


async def _led(view: TopicView, route: Route, agent: Agent) -> list[int]:
    """The partitions of a topic whose leader this agent is, for the clients of ``route``."""
    led: list[int] = []
    for first in range(0, view.partition_count, CHUNK_PARTITIONS):
        leaders = route.leaders(view.topic_id, view.partition_count, first // CHUNK_PARTITIONS)
        led += [number for number, node_id in enumerate(leaders, first) if node_id == agent.identity.node_id]
        await asyncio.sleep(0)
    return led


def _partition(number: int, size: int) -> Body:
    return {"partition_index": number, "partition_size": size, "offset_lag": 0, "is_future_key": False}
