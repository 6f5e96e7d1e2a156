"""Kafka's "validating a produce" table, rule by rule and in its order."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from ingest.batch_header import BatchHeader, MalformedRecords
from ingest.records import BatchFault, FaultCode, needs_walk, validate, validate_records
from metadata.topic_configs import TopicPolicy, topic_policy
from tests.support.batches import CODECS, build_batch, build_record

NOW_MS = 1_700_000_000_000
PLAIN = topic_policy({})
COMPACTED = topic_policy({"cleanup.policy": "compact"})
APPEND_TIME = topic_policy({"message.timestamp.type": "LogAppendTime"})


def fault_of(batch: bytes, policy: TopicPolicy = PLAIN, produce_version: int = 9) -> BatchFault | None:
    """As the produce handler asks."""
    view = memoryview(bytearray(batch))
    draft = validate(view, policy, NOW_MS, produce_version)
    if isinstance(draft, BatchFault):
        return draft
    header = BatchHeader.parse(view)
    assert draft == header.draft()
    return validate_records(view, header, policy, NOW_MS, 1 << 20) if needs_walk(policy) else None


def test_every_code_is_kios_name() -> None:
    assert {code.value for code in FaultCode} <= set(ErrorCode.__members__)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("policy", [PLAIN, COMPACTED, APPEND_TIME])
def test_right_batches_pass(codec: str, count: int, policy: TopicPolicy) -> None:
    batch = build_batch(
        [(b"key", b"v" * (n % 300)) for n in range(count)],
        codec=codec,
        producer_id=3,
        producer_epoch=0,
        base_sequence=0,
    )
    assert fault_of(batch, policy) is None


def test_the_header_says_what_was_written() -> None:
    batch = build_batch([b"a", b"b"], codec="zstd", producer_id=9, producer_epoch=2, base_sequence=7)
    header = BatchHeader.parse(batch)
    assert header.byte_length == len(batch)
    assert (header.codec, header.record_count, header.last_offset_delta) == (4, 2, 1)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 7)
    assert (header.base_timestamp_ms, header.max_timestamp_ms) == (NOW_MS, NOW_MS)
    with pytest.raises(MalformedRecords):
        BatchHeader.parse(batch[:60])


BAD: dict[str, tuple[bytes, FaultCode]] = {
    "no records field": (b"", FaultCode.INVALID_RECORD),
    "shorter than a header": (build_batch()[:60], FaultCode.INVALID_RECORD),
    "two batches": (build_batch() + build_batch(), FaultCode.INVALID_RECORD),
    "bytes after the batch": (build_batch() + b"x", FaultCode.INVALID_RECORD),
    "cut off": (build_batch()[:-1], FaultCode.INVALID_RECORD),
    "magic 1": (build_batch(magic=1), FaultCode.INVALID_RECORD),
    "magic 3": (build_batch(magic=3), FaultCode.INVALID_RECORD),
    "negative length": (build_batch(batch_length=-1), FaultCode.INVALID_RECORD),
    "length 2^31-1": (build_batch(batch_length=2**31 - 1), FaultCode.INVALID_RECORD),
    "base offset": (build_batch(base_offset=5), FaultCode.INVALID_RECORD),
    "wrong CRC": (build_batch(crc=1), FaultCode.CORRUPT_MESSAGE),
    "no records": (build_batch([]), FaultCode.INVALID_RECORD),
    "negative count": (build_batch(record_count=-1), FaultCode.INVALID_RECORD),
    "count beyond the deltas": (build_batch(record_count=2), FaultCode.INVALID_RECORD),
    "delta beyond the count": (build_batch(last_offset_delta=2**31 - 1), FaultCode.INVALID_RECORD),
    "one record that claims two": (build_batch(record_count=2, last_offset_delta=1), FaultCode.INVALID_RECORD),
    "three records that claim two": (
        build_batch([b"a" * 50] * 3, record_count=2, last_offset_delta=1),
        FaultCode.INVALID_RECORD,
    ),
    "a record that claims 2^31-1": (
        build_batch(record_count=2**31 - 1, last_offset_delta=2**31 - 2),
        FaultCode.INVALID_RECORD,
    ),
    "control batch": (build_batch(attributes=0x20), FaultCode.INVALID_RECORD),
    "transactional": (
        build_batch(attributes=0x10, producer_id=1, producer_epoch=0, base_sequence=0),
        FaultCode.INVALID_TXN_STATE,
    ),
    "producer without a sequence": (
        build_batch(producer_id=1, producer_epoch=0, base_sequence=-1),
        FaultCode.INVALID_RECORD,
    ),
    "codec 5": (build_batch(attributes=5), FaultCode.INVALID_RECORD),
    "an hour and a second ahead": (build_batch(base_timestamp_ms=NOW_MS + 3_601_000), FaultCode.INVALID_TIMESTAMP),
    "append time set by the producer": (build_batch(attributes=8), FaultCode.INVALID_TIMESTAMP),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_batches_get_kafkas_error(name: str) -> None:
    batch, code = BAD[name]
    fault = fault_of(batch)
    assert fault is not None and fault.code is code and fault.message


def test_a_null_records_field_is_not_one_batch() -> None:
    fault = validate(None, PLAIN, NOW_MS, 9)
    assert isinstance(fault, BatchFault) and fault.code is FaultCode.INVALID_RECORD


@pytest.mark.parametrize("timestamp_ms", [NOW_MS + 3_600_000, 0, -1])
def test_timestamps_that_are_allowed(timestamp_ms: int) -> None:
    assert fault_of(build_batch(base_timestamp_ms=timestamp_ms)) is None


def test_aiokafkas_sequence_without_a_producer_id_is_ignored() -> None:
    assert fault_of(build_batch(producer_id=-1, base_sequence=0)) is None


@pytest.mark.parametrize(("produce_version", "code"), [(6, FaultCode.UNSUPPORTED_COMPRESSION_TYPE), (7, None)])
def test_zstd_needs_produce_7(produce_version: int, code: FaultCode | None) -> None:
    fault = fault_of(build_batch(codec="zstd"), produce_version=produce_version)
    assert (fault.code if fault else None) is code


def test_the_rules_come_in_kafkas_order() -> None:
    """A batch that breaks every rule is told of the first; mended one by one, of the next."""
    small = topic_policy({"max.message.bytes": "100"})
    everything: dict[str, Any] = {
        "codec": "zstd",
        "base_offset": 1,
        "crc": 1,
        "record_count": -1,
        "base_timestamp_ms": NOW_MS + 10_000_000,
    }
    big = [bytes(range(256)) * 4]
    assert fault_code(build_batch(big, **everything), small, 6) is FaultCode.UNSUPPORTED_COMPRESSION_TYPE
    del everything["codec"]
    assert "baseOffset" in str(fault_of(build_batch(big, **everything), small, 6))
    del everything["base_offset"]
    assert fault_code(build_batch(big, **everything), small, 6) is FaultCode.MESSAGE_TOO_LARGE
    assert fault_code(build_batch([b""], **everything), small, 6) is FaultCode.CORRUPT_MESSAGE
    del everything["crc"]
    assert fault_code(build_batch([b""], **everything), small, 6) is FaultCode.INVALID_RECORD
    del everything["record_count"]
    assert fault_code(build_batch([b""], **everything), small, 6) is FaultCode.INVALID_TIMESTAMP
    del everything["base_timestamp_ms"]
    assert fault_of(build_batch([b""], **everything), small, 6) is None


def fault_code(batch: bytes, policy: TopicPolicy, produce_version: int) -> FaultCode | None:
    fault = fault_of(batch, policy, produce_version)
    return fault.code if fault else None


def test_max_message_bytes_is_inclusive() -> None:
    batch = build_batch([b"x" * 500])
    assert fault_of(batch, topic_policy({"max.message.bytes": str(len(batch))})) is None
    fault = fault_of(batch, topic_policy({"max.message.bytes": str(len(batch) - 1)}))
    assert fault is not None and fault.code is FaultCode.MESSAGE_TOO_LARGE


@pytest.mark.parametrize("codec", CODECS)
def test_a_null_key_on_a_compacted_topic_names_the_records(codec: str) -> None:
    records = [(b"k", b"v"), (None, b"v"), (b"", b"v"), (None, None)]
    fault = fault_of(build_batch(records, codec=codec), COMPACTED)
    assert fault is not None and fault.code is FaultCode.INVALID_RECORD
    assert [error.batch_index for error in fault.record_errors] == [1, 3]
    assert fault_of(build_batch(records, codec=codec), PLAIN) is None


def test_at_most_three_records_are_named() -> None:
    fault = fault_of(build_batch([b"v"] * 100), COMPACTED)
    assert fault is not None and [error.batch_index for error in fault.record_errors] == [0, 1, 2]


def test_the_oldest_timestamp_allowed_is_checked_record_by_record() -> None:
    policy = topic_policy({"message.timestamp.before.max.ms": "1000"})
    times = [NOW_MS, NOW_MS - 1001, NOW_MS - 1000, -1]
    fault = fault_of(build_batch([b"v"] * 4, timestamps_ms=times), policy)
    assert fault is not None and fault.code is FaultCode.INVALID_TIMESTAMP
    assert [error.batch_index for error in fault.record_errors] == [1]


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_garbage_inside_is_found_where_the_topic_needs_a_look_inside(codec: str) -> None:
    garbage = build_batch([(b"k", b"v")], attributes=CODECS[codec], body=b"\x12garbage" * 9)
    fault = fault_of(garbage, COMPACTED)
    assert fault is not None and fault.code is FaultCode.INVALID_RECORD
    assert fault_of(garbage, PLAIN) is None


@pytest.mark.parametrize(
    "batch",
    [
        build_batch([(b"k", bytes(2 << 20))], codec="zstd"),
        build_batch(body=bytes(4_200_000), attributes=0, record_count=600_000, last_offset_delta=599_999),
    ],
    ids=["bomb", "600,000 records"],
)
def test_what_would_take_too_much_to_look_into_is_too_large(batch: bytes) -> None:
    large = topic_policy({"cleanup.policy": "compact", "max.message.bytes": "10000000"})
    fault = fault_of(batch, large)
    assert fault is not None and fault.code is FaultCode.MESSAGE_TOO_LARGE


@pytest.mark.parametrize("body", [b"\x80" * 20, b"\x01" * 20, b"\xff\xff\xff\xff\x0f" + b"x" * 20, b"\x02" * 7])
def test_hostile_record_lengths(body: bytes) -> None:
    fault = fault_of(build_batch(body=body))
    assert fault is not None and fault.code is FaultCode.INVALID_RECORD


def test_a_long_record_length_is_read_right() -> None:
    for size in (1, 62, 63, 64, 8_000, 8_192, 900_000):
        assert fault_of(build_batch([b"x" * size])) is None
        assert fault_of(build_batch([b"x" * size, b"y"])) is None


def test_a_lying_count_beyond_what_is_counted_still_cannot_burn_offsets() -> None:
    body = b"".join(build_record(b"v", n) for n in range(100))
    room = len(body) // 7
    assert fault_of(build_batch(body=body, record_count=room, last_offset_delta=room - 1)) is None
    fault = fault_of(build_batch(body=body, record_count=room + 1, last_offset_delta=room))
    assert fault is not None and fault.code is FaultCode.INVALID_RECORD


def test_the_payload_may_be_any_bytes_like() -> None:
    batch = build_batch()
    for payload in (batch, bytearray(batch), memoryview(batch), memoryview(b"x" + batch + b"y")[1:-1]):
        assert validate(payload, PLAIN, NOW_MS, 9) == BatchHeader.parse(batch).draft()


def test_every_flipped_bit_is_noticed() -> None:
    batch = build_batch([b"some value"])
    for position in range(len(batch)):
        if 12 <= position < 16:
            continue  # the leader epoch is the broker's to fill in, and not covered by the CRC
        for bit in (1, 0x80):
            flipped = bytearray(batch)
            flipped[position] ^= bit
            assert fault_of(bytes(flipped)) is not None, position
    assert struct.unpack_from(">i", batch, 12) == (-1,)
