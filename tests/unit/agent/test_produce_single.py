"""The short way of a Produce request of one batch answers as the general one does, byte for byte."""

from __future__ import annotations

import struct

import pytest

from agent import connection as connection_module
from ingest.ticket import IngestFailed
from metadata.model import BatchCommitted, Refusal
from tests.support.batches import build_batch
from tests.support.connections import Harness, deliver, frame, produce, turns

TOPICS = {"logs": {}, "stamped": {"message.timestamp.type": "LogAppendTime"}}
OUTCOMES = [
    BatchCommitted(2**40, 7),
    BatchCommitted(3, 0, duplicate=True),
    BatchCommitted(-1, 5, refusal=Refusal.OUT_OF_ORDER_SEQUENCE),
    BatchCommitted(-1, 5, refusal=Refusal.UNKNOWN_TOPIC_ID),
    IngestFailed("it was not to be"),
]


def compact(count: int) -> bytes:
    """One more than a length, as an unsigned varint of at most two bytes."""
    count += 1
    return bytes([count]) if count < 0x80 else bytes([count & 0x7F | 0x80, count >> 7])


def produce_any(version: int, topic: str, records: bytes, acks: int = -1, transactional: bytes | None = None) -> bytes:
    if version < 9:
        assert transactional is None
        return produce(1, {(topic, 1): records}, acks, version)
    body = b"\0" + (b"\0" if transactional is None else compact(len(transactional)) + transactional)
    body += struct.pack(">hi", acks, 30_000) + compact(1) + compact(len(topic)) + topic.encode()
    body += compact(1) + struct.pack(">i", 1) + compact(len(records)) + records + b"\0\0\0"
    return frame(0, version, 1, body)


async def answer_to(request: bytes, outcome: BatchCommitted | IngestFailed | None) -> tuple[list[object], Harness]:
    """The frames that answer ``request``, whose batch settles as ``outcome`` if it comes to that."""
    harness = Harness(topics=TOPICS)
    connection, transport = harness.connect()
    deliver(connection, transport, request)
    await turns()
    if harness.writer.appended:
        harness.writer.settle(1, outcome)
    await turns()
    assert harness.budget.held_bytes == 0
    return list(transport.answers()), harness


def counts(harness: Harness) -> tuple[object, ...]:
    metrics = harness.metrics
    produced = metrics.apis[0]
    outcomes = (produced.ok, produced.error, produced.refused, sum(produced.buckets))
    return (*outcomes, metrics.received_records, metrics.received_batches, dict(metrics.refused_batches))


async def both_ways(
    request: bytes, outcome: BatchCommitted | IngestFailed | None, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    short, short_harness = await answer_to(request, outcome)
    with monkeypatch.context() as patch:
        patch.setattr(connection_module, "single_batch", lambda *_: None)
        general, general_harness = await answer_to(request, outcome)
    assert short == general
    assert counts(short_harness) == counts(general_harness)
    return short


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
@pytest.mark.parametrize("version", range(3, 13))
async def test_both_ways_answer_the_same(
    version: int, outcome: BatchCommitted | IngestFailed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(await both_ways(produce_any(version, "logs", build_batch()), outcome, monkeypatch)) == 1


@pytest.mark.parametrize("topic", ["logs", "stamped", "gone"])
@pytest.mark.parametrize(
    "records", [build_batch(), build_batch(crc=1), build_batch(record_count=5), b"", b"x" * 70], ids=range(5)
)
@pytest.mark.parametrize("acks", [-1, 0, 1, 2])
async def test_what_is_special_is_answered_the_same(
    topic: str, records: bytes, acks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await both_ways(produce_any(7, topic, records, acks), BatchCommitted(5, 0), monkeypatch)


async def test_transactions_are_refused_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,) = await both_ways(produce_any(9, "logs", build_batch(), transactional=b"t"), None, monkeypatch)
    assert isinstance(answer, tuple)
    assert struct.unpack(">h", answer[1][12:14]) == (53,)


async def test_one_partition_behind_a_topic_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    records = build_batch()
    body = struct.pack(">hhii", -1, -1, 30_000, 2) + struct.pack(">h4si", 4, b"logs", 0)
    body += struct.pack(">h4sii", 4, b"logs", 1, 2) + struct.pack(">i", len(records)) + records
    assert len(await both_ways(frame(0, 7, 1, body), BatchCommitted(5, 0), monkeypatch)) == 1


async def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the general way was taken")

    monkeypatch.setattr(connection_module, "ProduceCall", refuse)
    answers, _ = await answer_to(produce_any(7, "logs", build_batch()), BatchCommitted(5, 0))
    assert len(answers) == 1
