"""Produce by hand, compared with kio for every version."""

from __future__ import annotations

import datetime
import io
import mmap
import struct

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from agent.wire.endpoints import NodeEndpoint
from agent.wire.errors import DecodeError
from agent.wire.produce_codec import (
    NO_RECORDS,
    PARTITIONS_MAX,
    PartitionRefusal,
    RecordError,
    decode_produce,
    encode_produce_response,
    encode_single_ack,
)

VERSIONS = range(3, 13)
TOPICS: dict[str, dict[int, bytes | None]] = {
    "logs": {0: b"first", 7: None, 3: b""},
    "": {},
    "größe": {2**31 - 1: b"x" * 300},
}


def request_bytes(
    version: int,
    transactional_id: str | None = None,
    tags: bool = False,
    topics: dict[str, dict[int, bytes | None]] = TOPICS,
) -> bytes:
    """A request as kio writes it, with a header before it."""
    schema = load_request_schema(0, version)
    module = __import__(schema.__module__, fromlist=["x"])
    request = schema(
        transactional_id=transactional_id,
        acks=-1,
        timeout=datetime.timedelta(milliseconds=1234),
        topic_data=tuple(
            module.TopicProduceData(
                name=name,
                partition_data=tuple(
                    module.PartitionProduceData(index=index, records=records) for index, records in partitions.items()
                ),
            )
            for name, partitions in topics.items()
        ),
    )
    out = io.BytesIO()
    header = schema.__header_schema__(
        request_api_key=0, request_api_version=version, correlation_id=99, client_id="rdkafka"
    )
    entity_writer(schema.__header_schema__)(out, header)
    entity_writer(schema)(out, request)
    data = out.getvalue()
    if tags:  # in place of the last section, that of the whole request
        assert version >= 9 and data[-1] == 0
        data = data[:-1] + b"\x02\x05\x02hi\xff\x01\x00"
    return data


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("transactional_id", [None, "", "tx"])
def test_requests_are_read_as_kio_writes_them(version: int, transactional_id: str | None) -> None:
    data = request_bytes(version, transactional_id)
    buffer = b"before" + data + b"behind"
    request = decode_produce(buffer, 6, 6 + len(data))
    assert (request.api_version, request.correlation_id) == (version, 99)
    assert (request.acks, request.timeout_ms, request.transactional_id) == (-1, 1234, transactional_id)
    assert request.partition_count == 4
    found = {
        name: {partition: None if start == NO_RECORDS else buffer[start:end] for partition, start, end in partitions}
        for name, partitions in request.topics
    }
    assert found == TOPICS


@pytest.mark.parametrize("version", range(9, 13))
def test_unknown_tags_and_leftovers_are_skipped(version: int) -> None:
    data = request_bytes(version, tags=True) + b"\0\0\0"
    assert decode_produce(data, 0, len(data)).partition_count == 4


@pytest.mark.parametrize("version", VERSIONS)
def test_a_request_cut_anywhere_is_refused(version: int) -> None:
    data = request_bytes(version)
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            decode_produce(data[:length], 0, length)
        with pytest.raises(DecodeError):  # the same when another request's bytes follow in the buffer
            decode_produce(data, 0, length)


def test_other_kinds_of_buffers() -> None:
    data = request_bytes(7)
    mapped = mmap.mmap(-1, len(data))
    mapped[:] = data
    assert decode_produce(mapped, 0, len(data)).topics == decode_produce(bytearray(data), 0, len(data)).topics


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">hhii", -1, 1, 0, 2**31 - 1),
        struct.pack(">hhii", -1, 1, 0, -1),
        struct.pack(">hhii", -1, 1, 0, PARTITIONS_MAX + 1) + bytes(20 * PARTITIONS_MAX),
        struct.pack(">hhiih", -1, 1, 0, 1, -1),
        struct.pack(">hhiihi", -1, 1, 0, 1, 0, -2),
        struct.pack(">hhiihiii", -1, 1, 0, 1, 0, 1, 0, 2**31 - 1),
    ],
)
def test_lying_counts_and_lengths(body: bytes) -> None:
    data = struct.pack(">hhih", 0, 7, 1, -1) + body
    with pytest.raises(DecodeError):
        decode_produce(data, 0, len(data))


REFUSAL = PartitionRefusal(
    ErrorCode.invalid_record, "bad", (RecordError(3, "no key"), RecordError(4, None)), leader_id=5
)
RESULTS = [
    ("logs", [(0, 1234567890123, -1, 17), (1, REFUSAL)]),
    ("größe", [(2, 5, 1_700_000_000_000, 0), (3, PartitionRefusal(ErrorCode.corrupt_message))]),
    ("none", []),
]


def kio_response(version: int) -> bytes:
    schema = load_response_schema(0, version)
    module = __import__(schema.__module__, fromlist=["x"])

    def row(partition: int, *rest: object) -> object:
        fields: dict[str, object] = {"index": partition}
        if isinstance(rest[0], PartitionRefusal):
            refusal = rest[0]
            fields |= {"error_code": ErrorCode(refusal.error_code), "base_offset": -1, "log_append_time": None}
            if version >= 5:
                fields["log_start_offset"] = -1
            if version >= 8:
                fields["record_errors"] = tuple(
                    module.BatchIndexAndErrorMessage(batch_index=e.batch_index, batch_index_error_message=e.message)
                    for e in refusal.record_errors
                )
                fields["error_message"] = refusal.message
            if version >= 10 and refusal.leader_id >= 0:
                fields["current_leader"] = module.LeaderIdAndEpoch(leader_id=refusal.leader_id, leader_epoch=0)
            return module.PartitionProduceResponse(**fields)
        base_offset, append_ms, start = rest
        fields |= {"error_code": ErrorCode.none, "base_offset": base_offset, "log_append_time": None}
        if append_ms != -1:
            fields["log_append_time"] = datetime.datetime.fromtimestamp(append_ms / 1000, datetime.UTC)
        if version >= 5:
            fields["log_start_offset"] = start
        if version >= 8:
            fields |= {"record_errors": (), "error_message": None}
        return module.PartitionProduceResponse(**fields)

    endpoints = {}
    if version >= 10:
        endpoints["node_endpoints"] = (module.NodeEndpoint(node_id=5, host="a.b", port=9092, rack=None),)
    response = schema(
        responses=tuple(
            module.TopicProduceResponse(name=name, partition_responses=tuple(row(*result) for result in results))
            for name, results in RESULTS
        ),
        throttle_time=datetime.timedelta(0),
        **endpoints,
    )
    out = io.BytesIO()
    entity_writer(schema.__header_schema__)(out, schema.__header_schema__(correlation_id=42))
    entity_writer(schema)(out, response)
    return out.getvalue()


@pytest.mark.parametrize("version", VERSIONS)
def test_responses_are_written_as_kio_writes_them(version: int) -> None:
    frame = encode_produce_response(version, 42, RESULTS, [NodeEndpoint(5, "a.b", 9092)])
    assert frame[4:] == kio_response(version)
    assert struct.unpack_from(">i", frame) == (len(frame) - 4,)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("topic", ["logs", "", "größe", "x" * 126, "x" * 127, "x" * 249])
def test_the_short_way_to_one_acknowledgement_is_the_same(version: int, topic: str) -> None:
    ack = (3, 1234567890123, 1_700_000_000_000, 17)
    assert encode_single_ack(version, 42, topic, ack) == encode_produce_response(version, 42, [(topic, [ack])])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("partitions", [{0: b"batch"}, {5: None}, {1: b""}])
def test_requests_of_one_partition(version: int, partitions: dict[int, bytes | None]) -> None:
    data = request_bytes(version, topics={"logs": partitions})
    request = decode_produce(data, 0, len(data))
    ((name, ((partition, start, end),)),) = request.topics
    assert (name, partition) == ("logs", *partitions)
    assert (None if start == NO_RECORDS else data[start:end]) == partitions[partition]
    assert (request.acks, request.timeout_ms, request.transactional_id, request.partition_count) == (-1, 1234, None, 1)
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            decode_produce(data, 0, length)


def test_an_acknowledgement_alone_carries_no_tags() -> None:
    frame = encode_produce_response(12, 1, [("logs", [(0, 1, -1, 0)])])
    schema = load_response_schema(0, 12)
    decoded, size = entity_reader(schema)(frame, 9)
    assert 9 + size == len(frame)
    assert decoded.node_endpoints == ()
    assert decoded.responses[0].partition_responses[0].current_leader.leader_id == -1
