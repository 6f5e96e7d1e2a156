"""The hand-written Metadata response against the general encoder, which is checked against kio's."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from agent.wire.codec import encode_response, response_prefix
from agent.wire.endpoints import NodeEndpoint
from agent.wire.metadata_codec import OPERATIONS_UNKNOWN, MetadataResponse

BROKERS = [NodeEndpoint(3, "agent-3.example", 9092), NodeEndpoint(70_000, "::1", 19_092)]
TOPIC_ID = uuid.UUID("00000000-0000-4000-8000-00000000002a")
TOPICS: list[tuple[int, str | None, uuid.UUID | None, list[int]]] = [
    (0, "logs", TOPIC_ID, [3, 70_000, 3]),
    (3, "é" * 100, None, []),
    (100, None, TOPIC_ID, []),
    (0, "x" * 249, TOPIC_ID, [70_000] * 300),
]


def expected(version: int, topics: list[tuple[int, str | None, uuid.UUID | None, list[int]]]) -> bytes:
    rows: list[dict[str, Any]] = [
        {
            "error_code": code,
            "name": name if name is not None or version >= 12 else "",
            "topic_id": topic_id,
            "is_internal": False,
            "partitions": [
                {
                    "error_code": 0,
                    "partition_index": index,
                    "leader_id": node,
                    "leader_epoch": 0,
                    "replica_nodes": (node,),
                    "isr_nodes": (node,),
                    "offline_replicas": (),
                }
                for index, node in enumerate(leaders)
            ],
            "topic_authorized_operations": OPERATIONS_UNKNOWN,
        }
        for code, name, topic_id, leaders in topics
    ]
    return encode_response(
        3,
        version,
        9,
        {
            "throttle_time": 0,
            "brokers": [{"node_id": b.node_id, "host": b.host, "port": b.port, "rack": None} for b in BROKERS],
            "cluster_id": "cluster",
            "controller_id": 3,
            "topics": rows,
            "cluster_authorized_operations": OPERATIONS_UNKNOWN,
            "error_code": 0,
        },
    )


@pytest.mark.parametrize("topics", [[], TOPICS[:1], TOPICS], ids=["no topics", "one", "several"])
@pytest.mark.parametrize("version", range(14))
def test_it_is_what_the_general_encoder_writes(version: int, topics: Any) -> None:
    response = MetadataResponse(version, BROKERS, "cluster", 3, len(topics))
    for code, name, topic_id, leaders in topics:
        response.topic(code, name, bytes(16) if topic_id is None else topic_id.bytes, len(leaders))
        for first in range(0, len(leaders), 128):
            response.partitions(first, leaders[first : first + 128])
    body = response.end()
    assert response_prefix(3, version, 9, len(body)) + body == expected(version, topics)


def test_a_topic_has_as_many_partitions_as_it_says() -> None:
    response = MetadataResponse(13, BROKERS, "cluster", 3, 1)
    response.topic(0, "logs", TOPIC_ID.bytes, 2)
    with pytest.raises(AssertionError):
        response.end()
    with pytest.raises(AssertionError):
        response.partitions(0, [3, 3, 3])
