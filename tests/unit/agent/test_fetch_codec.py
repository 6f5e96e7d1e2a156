"""The hand-written Fetch response against kio's writer, byte for byte."""

from __future__ import annotations

import io
import uuid
from datetime import timedelta
from typing import Any

import pytest
from kio.index import load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i16, i32, i32Timedelta, i64

from agent.wire.endpoints import NodeEndpoint
from agent.wire.fetch_codec import COPY_BELOW_BYTES, TOPIC_ID_SINCE, PartitionRow, encode_fetch_response

VERSIONS = range(4, 17)
ID = uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF)
LARGE = [b"x" * COPY_BELOW_BYTES, memoryview(b"yy" * 5000)]
ROWS = [
    PartitionRow(0, 0, 100, 5, [b"abc", memoryview(b"defg")], 7),
    PartitionRow(1, 3, -1, -1, (), 0),
    PartitionRow(2, 0, 2**62, 2**61, LARGE, sum(map(len, LARGE))),
    PartitionRow(70_000, 100, 7, 7, [], 0),
    PartitionRow(4, 0, 1, 0, [b"z" * 200], 200),
]


def with_kio(version: int, topics: list[tuple[str, list[PartitionRow]]], read_committed: bool, error: int) -> bytes:
    response = load_response_schema(1, version)
    module = __import__(response.__module__, fromlist=["x"])

    def known(entity: Any, **fields: Any) -> Any:
        return entity(**{name: value for name, value in fields.items() if name in entity.__dataclass_fields__})

    entity = known(
        response,
        throttle_time=i32Timedelta.parse(timedelta(0)),
        error_code=ErrorCode(error),
        session_id=i32(0),
        responses=tuple(
            known(
                module.FetchableTopicResponse,
                topic=name,
                topic_id=ID,
                partitions=tuple(
                    known(
                        module.PartitionData,
                        partition_index=i32(row.partition),
                        error_code=ErrorCode(row.error_code),
                        high_watermark=i64(row.high_watermark),
                        last_stable_offset=i64(row.high_watermark),
                        log_start_offset=i64(row.log_start_offset),
                        aborted_transactions=() if read_committed else None,
                        preferred_read_replica=i32(-1),
                        records=b"".join(row.chunks),
                    )
                    for row in rows
                ),
            )
            for name, rows in topics
        ),
    )
    assert i16(version) == response.__version__
    buffer = io.BytesIO()
    entity_writer(response)(buffer, entity)
    return buffer.getvalue()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("read_committed", [False, True])
@pytest.mark.parametrize("shape", ["full", "no_topics", "no_partitions", "many"])
def test_same_bytes_as_kio(version: int, read_committed: bool, shape: str) -> None:
    topics: list[tuple[str, list[PartitionRow]]] = {
        "full": [("logs", ROWS), ("é" * 100, ROWS[:2])],
        "no_topics": [],
        "no_partitions": [("logs", [])],
        "many": [("t", [row._replace(partition=index) for index, row in enumerate(ROWS * 40)])],
    }[shape]
    ours = [(ID.bytes if version >= TOPIC_ID_SINCE else name, rows) for name, rows in topics]
    pieces, byte_length, own_bytes = encode_fetch_response(version, ours, read_committed)
    data = b"".join(pieces)
    assert data == with_kio(version, topics, read_committed, 0)
    assert byte_length == len(data)
    borrowed = sum(row.byte_length for _, rows in topics for row in rows if row.byte_length >= COPY_BELOW_BYTES)
    assert own_bytes == byte_length - borrowed


@pytest.mark.parametrize("version", range(7, 17))
def test_a_refused_session_is_an_empty_answer(version: int) -> None:
    pieces, _, _ = encode_fetch_response(version, (), error_code=70)
    assert b"".join(pieces) == with_kio(version, [], False, 70)


def test_large_records_are_not_copied() -> None:
    pieces, _, _ = encode_fetch_response(11, [("t", [ROWS[2]])])
    assert pieces[1] is LARGE[0] and pieces[2] is LARGE[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_refused_partitions_name_their_leader_from_version_16_on(version: int) -> None:
    name = ID.bytes if version >= TOPIC_ID_SINCE else "logs"
    rows = [PartitionRow(0, 6, -1, -1, (), 0, leader_id=7), PartitionRow(1, 6, -1, -1, (), 0)]
    pieces, _, _ = encode_fetch_response(version, [(name, rows)], endpoints=[NodeEndpoint(7, "agent-7", 9092)])
    data = b"".join(pieces)
    answer, size = entity_reader(load_response_schema(1, version))(data, 0)
    assert size == len(data)
    partitions = answer.responses[0].partitions
    assert [row.error_code for row in partitions] == [ErrorCode.not_leader_or_follower] * 2
    if version >= 16:
        assert (partitions[0].current_leader.leader_id, partitions[0].current_leader.leader_epoch) == (7, 0)
        assert [(node.node_id, node.host, node.port) for node in answer.node_endpoints] == [(7, "agent-7", 9092)]
    if version >= 12:
        assert partitions[1].current_leader.leader_id == -1
    if 12 <= version < 16:
        assert partitions[0].current_leader.leader_id == -1
