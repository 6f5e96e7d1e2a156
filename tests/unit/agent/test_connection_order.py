"""In which order requests are started and answered, and what starts none."""

from __future__ import annotations

import asyncio
import struct

import pytest
from kio.schema.errors import ErrorCode

from agent.wire import apis
from agent.wire.codec import EncodedResponse
from ingest.ticket import IngestFailed
from metadata.model import BatchCommitted, MetadataUnavailable, Refusal
from tests.support.batches import build_batch
from tests.support.connections import Gate, Harness, deliver, frame, heartbeat, produce, turns


def produce_row(rest: bytes, topic: str = "logs") -> tuple[int, int, int]:
    """(partition, error code, base offset) of the first row of a Produce 3-8 answer without its correlation id."""
    return struct.unpack_from(">ihq", rest, 4 + 2 + len(topic) + 4)


async def test_pipelined_produces_are_taken_in_before_the_first_is_committed() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, b"".join(produce(number) for number in range(10)))
    assert len(harness.writer.appended) == 10
    assert transport.answers() == []
    harness.writer.settle()
    await turns()
    answers = transport.answers()
    assert [number for number, _ in answers] == list(range(10))
    assert [produce_row(rest)[2] for _, rest in answers] == list(range(100, 110)), "each batch has its own offset"


async def test_answers_keep_their_order_when_batches_settle_in_another() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, produce(1) + produce(2) + produce(3))
    first, second, third = harness.writer.appended
    harness.writer.appended = [third, second]
    harness.writer.settle()
    await turns()
    assert transport.answers() == []
    harness.writer.appended = [first]
    harness.writer.settle()
    await turns()
    assert [number for number, _ in transport.answers()] == [1, 2, 3]


async def test_a_request_waits_for_earlier_ones_that_are_not_produce_and_produce_waits_for_it() -> None:
    gate = Gate()
    harness = Harness({apis.HEARTBEAT: gate})
    connection, transport = harness.connect()
    deliver(connection, transport, produce(1) + heartbeat(2) + heartbeat(3) + produce(4))
    await turns()
    assert len(harness.writer.appended) == 1, "the produce behind the heartbeats has not begun"
    assert [call.correlation_id for call in gate.calls] == [2], "heartbeats run one after the other"
    assert not transport.reading, "a connection with requests waiting is not read from"
    gate.open()
    await turns()
    assert [call.correlation_id for call in gate.calls] == [2, 3]
    gate.open()
    await turns()
    assert len(harness.writer.appended) == 2
    assert transport.reading
    assert transport.answers() == [], "nothing overtakes the first produce"
    harness.writer.settle()
    await turns()
    assert [number for number, _ in transport.answers()] == [1, 2, 3, 4]


async def test_what_a_handler_learns_about_its_caller() -> None:
    gate = Gate()
    harness = Harness({apis.HEARTBEAT: gate})
    connection, transport = harness.connect()
    deliver(connection, transport, heartbeat(7))
    await turns()
    (call,) = gate.calls
    assert (call.api_key, call.api_version, call.correlation_id) == (12, 0, 7)
    assert (call.client_id, call.client_host) == ("test", "/10.0.0.9")


async def test_requests_in_flight_are_limited() -> None:
    harness = Harness(requests_in_flight_max=4)
    connection, transport = harness.connect()
    deliver(connection, transport, b"".join(produce(number) for number in range(10)))
    assert len(harness.writer.appended) == 4
    assert not transport.reading
    harness.writer.settle(2)
    await turns()
    assert len(harness.writer.appended) == 4, "two more were taken in for the two that were answered"
    while harness.writer.appended:
        harness.writer.settle()
        await turns()
    assert [number for number, _ in transport.answers()] == list(range(10))
    assert transport.reading
    assert harness.budget.held_bytes == 0


async def test_many_settled_answers_leave_in_one_write() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    writes = []
    write = transport.write
    transport.write = lambda data: (writes.append(data), write(data))  # type: ignore[assignment,func-returns-value]
    deliver(connection, transport, b"".join(produce(number) for number in range(100)))
    harness.writer.settle()
    await turns()
    assert len(writes) == 1 and len(transport.answers()) == 100


async def test_acks_0_is_not_answered_and_an_error_closes() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, produce(1, acks=0) + produce(2))
    harness.writer.settle()
    await turns()
    assert [number for number, _ in transport.answers()] == [2]
    deliver(connection, transport, produce(3) + produce(4, {("absent", 0): build_batch()}, acks=0))
    await turns()
    assert not transport.closing, "the answer before it is still due"
    harness.writer.settle()
    await turns()
    assert [number for number, _ in transport.answers()] == [3]
    assert transport.closing
    assert harness.metrics.connections_closed["acks_0_error"] == 1


@pytest.mark.parametrize(
    ("batches", "acks", "code"),
    [
        ({("logs", 0): build_batch()}, 2, ErrorCode.invalid_required_acks),
        ({("logs", 0): build_batch()}, -2, ErrorCode.invalid_required_acks),
        ({("gone", 0): build_batch()}, 1, ErrorCode.unknown_topic_or_partition),
        ({("logs", 4): build_batch()}, 1, ErrorCode.unknown_topic_or_partition),
        ({("logs", -1): build_batch()}, 1, ErrorCode.unknown_topic_or_partition),
        ({("logs", 0): None}, 1, ErrorCode.invalid_record),
        ({("logs", 0): b""}, 1, ErrorCode.invalid_record),
        ({("logs", 0): build_batch() * 2}, 1, ErrorCode.invalid_record),
        ({("logs", 0): build_batch(crc=1)}, 1, ErrorCode.corrupt_message),
        ({("logs", 0): build_batch(magic=1)}, 1, ErrorCode.invalid_record),
        ({("logs", 0): build_batch(record_count=5)}, 1, ErrorCode.invalid_record),
    ],
)
async def test_refused_batches(batches: dict[tuple[str, int], bytes | None], acks: int, code: ErrorCode) -> None:
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, produce(1, batches, acks))
    await turns()
    ((_, rest),) = transport.answers()
    ((topic, partition),) = batches
    assert produce_row(rest, topic) == (partition, code, -1)
    assert harness.metrics.refused_batches[code.name] == 1
    assert harness.budget.held_bytes == 0


async def test_a_bad_batch_does_not_poison_its_neighbours() -> None:
    harness = Harness()
    connection, transport = harness.connect()
    batches = {("logs", 0): build_batch(), ("logs", 1): build_batch(crc=0), ("logs", 2): build_batch([b"a", b"b"])}
    deliver(connection, transport, produce(1, batches))
    assert [batch.partition for _, _, batch in harness.writer.appended] == [0, 2]
    harness.writer.settle()
    await turns()
    ((_, rest),) = transport.answers()
    rows = [struct.unpack_from(">ihq", rest, 4 + 10 + number * (10 + 30)) for number in range(3)]
    assert rows == [(0, 0, 100), (1, ErrorCode.corrupt_message, -1), (2, 0, 101)]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (IngestFailed("too slow"), ErrorCode.request_timed_out),
        (BatchCommitted(-1, 0, refusal=Refusal.OUT_OF_ORDER_SEQUENCE), ErrorCode.out_of_order_sequence_number),
        (BatchCommitted(-1, 0, refusal=Refusal.UNKNOWN_TOPIC_ID), ErrorCode.unknown_topic_or_partition),
        (BatchCommitted(55, 3, duplicate=True), ErrorCode.none),
    ],
)
async def test_what_the_commit_said(outcome: BatchCommitted | IngestFailed, code: ErrorCode) -> None:
    harness = Harness()
    connection, transport = harness.connect()
    deliver(connection, transport, produce(1))
    harness.writer.settle(outcome=outcome)
    await turns()
    ((_, rest),) = transport.answers()
    assert produce_row(rest) == (0, code, 55 if code is ErrorCode.none else -1)


async def test_topics_that_store_something_else_keep_the_order_of_requests() -> None:
    topics = {
        "logs": {},
        "zipped": {"compression.type": "zstd"},
        "stamped": {"message.timestamp.type": "LogAppendTime"},
    }
    harness = Harness(topics=topics)
    connection, transport = harness.connect()
    records = build_batch([b"x" * 500] * 20)
    deliver(
        connection,
        transport,
        produce(1, {("zipped", 0): records, ("zipped", 1): build_batch(crc=9)})
        + produce(2, {("zipped", 0): build_batch([b"y" * 100])})
        + produce(3, {("stamped", 2): records})
        + produce(4),
    )
    assert harness.writer.appended == [], "compression is done elsewhere, and the others wait for it"
    for _ in range(500):
        if len(harness.writer.appended) == 4:
            break
        await asyncio.sleep(0.01)
    batches = [batch for _, _, batch in harness.writer.appended]
    assert [batch.draft.record_count for batch in batches] == [20, 1, 20, 1]
    rewritten_bytes = sum(len(batch.payload) for batch in batches[:3])
    assert harness.budget.by_purpose["request"] > rewritten_bytes + 2 * len(records), "the copies are accounted too"
    assert len(batches[0].payload) < len(records)
    assert len(batches[2].payload) == len(records) and bytes(batches[2].payload) != records
    harness.writer.settle()
    await turns()
    answers = transport.answers()
    assert [number for number, _ in answers] == [1, 2, 3, 4]
    assert struct.unpack_from(">q", answers[2][1], 4 + 2 + 7 + 4 + 14) == (1_700_000_000_000,), "log append time"
    assert harness.budget.held_bytes == 0


async def test_a_handler_s_own_encoding_is_sent_piece_by_piece_and_released() -> None:
    released: list[bool] = []
    chunks = [b"head", memoryview(b"x" * 100_000), b"tail"]
    gate = Gate(EncodedResponse(chunks, 100_008, lambda: released.append(True)))
    harness = Harness({apis.FETCH: gate})
    connection, transport = harness.connect()
    transport.kernel_takes = False
    deliver(connection, transport, frame(apis.FETCH, 4, 5, struct.pack(">iiiibi", -1, 1, 1, 1, 0, 0)))
    await turns()
    gate.open()
    await turns()
    assert bytes(transport.written) == struct.pack(">ii", 100_012, 5) + b"head" + b"x" * 100_000 + b"tail"
    assert transport.waiting == 100_016
    assert not released and not transport.reading, "the client has not taken it yet"
    transport.take(100_016)
    assert released == [True] and transport.reading
    assert harness.budget.held_bytes == 0


async def test_a_handler_that_fails() -> None:
    gate = Gate(RuntimeError("bug"))
    harness = Harness({apis.HEARTBEAT: gate, apis.LIST_OFFSETS: gate})
    connection, transport = harness.connect()
    _, other_transport = harness.connect()
    deliver(connection, transport, heartbeat(1))
    await turns()
    gate.open()
    await turns()
    assert transport.answers() == [(1, struct.pack(">h", ErrorCode.unknown_server_error))]
    deliver(connection, transport, produce(2) + frame(apis.LIST_OFFSETS, 1, 3, struct.pack(">ii", -1, 0)))
    await turns()
    gate.open()
    await turns()
    assert not transport.closing
    harness.writer.settle()
    await turns()
    assert [number for number, _ in transport.answers()] == [2]
    assert transport.closing, "ListOffsets 1 has no place for an error of its own"
    assert not other_transport.closing
    assert harness.failures == [], "the process goes on"
    assert harness.metrics.apis[apis.HEARTBEAT].failed == harness.metrics.apis[apis.LIST_OFFSETS].failed == 1


async def test_metadata_that_cannot_answer_is_retriable() -> None:
    gate = Gate(MetadataUnavailable("gone"))
    harness = Harness({apis.HEARTBEAT: gate})
    connection, transport = harness.connect()
    deliver(connection, transport, heartbeat(1))
    await turns()
    gate.open()
    await turns()
    assert transport.answers() == [(1, struct.pack(">h", ErrorCode.coordinator_not_available))]


async def test_a_fault_of_ours_while_taking_in_ends_that_connection_only() -> None:
    harness = Harness()
    (connection, transport), (other_connection, other) = harness.connect(), harness.connect()
    harness.writer.fault = RuntimeError("bug")
    deliver(connection, transport, produce(1) + produce(2))
    await turns()
    assert transport.closing
    assert harness.metrics.connections_closed["failed"] == 1
    harness.writer.fault = None
    deliver(other_connection, other, produce(3))
    harness.writer.settle()
    await turns()
    assert [number for number, _ in other.answers()] == [3]
    assert harness.failures == []
