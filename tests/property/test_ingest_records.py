"""Hostile and random bytes against batch validation, codecs and the record walk; round trips of everything written."""

from __future__ import annotations

import contextlib
import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.batch_header import BatchHeader, MalformedRecords
from ingest.codecs import XERIAL_HEADER, Codec, compress, decompress
from ingest.compression import iterate_records, recompress
from ingest.records import BatchFault, validate, validate_records
from metadata.topic_configs import topic_policy
from tests.support.batches import CODECS, build_batch

NOW_MS = 1_700_000_000_000
POLICIES = [
    topic_policy({}),
    topic_policy({"cleanup.policy": "compact"}),
    topic_policy({"message.timestamp.before.max.ms": "1000", "max.message.bytes": "4096"}),
    topic_policy({"message.timestamp.type": "LogAppendTime"}),
]
MAYBE_BYTES = st.none() | st.binary(max_size=200)
RECORD = st.tuples(MAYBE_BYTES, MAYBE_BYTES, st.lists(st.tuples(st.text(max_size=10), MAYBE_BYTES), max_size=3))
PRODUCER = st.fixed_dictionaries(
    {
        "codec": st.sampled_from(sorted(CODECS)),
        "producer_id": st.integers(-1, 2**62),
        "producer_epoch": st.integers(0, 2**15 - 1),
        "base_sequence": st.integers(0, 2**31 - 1),
    }
)


@settings(deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=50), PRODUCER, st.sampled_from(list(Codec)), st.data())
def test_what_is_written_is_valid_and_reads_back_in_every_codec(records, producer, target, data) -> None:  # type: ignore[no-untyped-def]
    times = data.draw(st.lists(st.integers(0, NOW_MS), min_size=len(records), max_size=len(records)))
    batch = build_batch(records, timestamps_ms=times, **producer)
    for rewritten in (batch, recompress(batch, target)):
        assert validate(rewritten, POLICIES[0], NOW_MS, 9) == BatchHeader.parse(rewritten).draft()
        read = list(iterate_records(rewritten))
        assert [(record.key, record.value) for record in read] == [record[:2] for record in records]
        assert [record.timestamp_ms for record in read] == times
        assert [[(name.decode(), value) for name, value in record.headers] for record in read] == [
            list(headers) for _, _, headers in records
        ]


@settings(max_examples=500, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from(range(8)),
    st.integers(-(2**31), 2**31 - 1) | st.integers(0, 40),
    st.sampled_from(POLICIES),
)
@example(b"\xff" * 300, 0, 2**31 - 1, POLICIES[1])
def test_hostile_records_raise_one_exception_and_never_pass_for_right(body, codec, count, policy) -> None:  # type: ignore[no-untyped-def]
    batch = build_batch(body=body, attributes=codec, record_count=count, last_offset_delta=max(-(2**31), count - 1))
    header = BatchHeader.parse(batch)
    verdict = validate(batch, policy, NOW_MS, 9)
    fault = verdict if isinstance(verdict, BatchFault) else validate_records(batch, header, policy, NOW_MS, 1 << 20)
    assert fault is None or isinstance(fault, BatchFault)
    try:
        read = sum(1 for _ in itertools.islice(iterate_records(batch), 100_000))
    except MalformedRecords:
        return
    assert read == max(0, count)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(POLICIES), st.integers(0, 12))
def test_random_bytes_are_a_fault(payload: bytes, policy, produce_version: int) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(validate(payload, policy, NOW_MS, produce_version), BatchFault)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 255), PRODUCER)
def test_damage_behind_the_crc_is_always_corrupt_or_earlier(position: int, change: int, producer) -> None:  # type: ignore[no-untyped-def]
    batch = bytearray(build_batch([b"value" * 20], **producer))
    position = 16 + position % (len(batch) - 16)
    batch[position] ^= change
    assert isinstance(validate(batch, POLICIES[0], NOW_MS, 9), BatchFault)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([codec for codec in Codec if codec]),
    st.binary(max_size=300),
    st.sampled_from([b"", XERIAL_HEADER, b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18\x60\x40", b"\x1f\x8b\x08\x00"]),
    st.integers(0, 10_000),
)
def test_random_compressed_bytes_never_exceed_the_limit(codec: Codec, data: bytes, start: bytes, limit: int) -> None:
    with contextlib.suppress(MalformedRecords):
        assert len(decompress(codec, start + data, limit)) <= limit


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(Codec)), st.binary(max_size=5000), st.integers(0, 6000), st.integers(0, 2**31))
def test_a_limit_is_exact_and_damage_is_contained(codec: Codec, plain: bytes, limit: int, position: int) -> None:
    data = bytearray(compress(codec, plain))
    try:
        assert decompress(codec, data, limit) == plain
        assert limit >= len(plain)
    except MalformedRecords:
        assert limit < len(plain) or not plain
    if data:
        data[position % len(data)] ^= 0x55
        with contextlib.suppress(MalformedRecords):
            assert len(decompress(codec, data, 1 << 16)) <= 1 << 16
