"""Codecs as real clients write and read them, rewriting of batches, and zip bombs."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import aiokafka.codec
import cramjam
import crc32c
import pytest
import zstandard
from aiokafka.record.default_records import DefaultRecordBatch as AioBatch
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AioBuilder
from kafka.record.default_records import DefaultRecordBatch as KafkaPythonBatch
from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder

from ingest.batch_header import BatchHeader, ExpansionLimit, MalformedRecords
from ingest.codecs import Codec, compress, decompress
from ingest.compression import Record, iterate_records, recompress, stamp_log_append_time
from ingest.records import BatchFault, FaultCode, validate
from ingest.rewrite import needs_rewrite, rewrite, stores_as_sent
from metadata.topic_configs import topic_policy
from tests.support.batches import CODECS, build_batch

NOW_MS = 1_700_000_000_000
RECORDS: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
    (None, b"first", []),
    (b"key", None, [("h", b"1"), ("ü", b"")]),
    (b"", b"", [("h", b"1"), ("h", b"2")]),
    (b"k" * 200, b"v" * 100_000, []),
]


def kafka_records(batch: bytes, reader: Callable[[bytes], Any]) -> list[Record]:
    """What a real client sees in ``batch``."""
    opened = reader(batch)
    assert opened.validate_crc()
    return [
        Record(
            record.offset,
            record.timestamp,
            record.key,
            record.value,
            tuple((name.encode(), value) for name, value in record.headers),
        )
        for record in opened
    ]


def ours(batch: bytes) -> list[Record]:
    return list(iterate_records(batch))


@pytest.mark.parametrize("builder", [AioBuilder, KafkaPythonBuilder])
@pytest.mark.parametrize("codec", list(Codec))
def test_batches_of_real_producers_are_valid_and_read_right(codec: Codec, builder: Any) -> None:
    batches = builder(
        magic=2,
        compression_type=int(codec),
        is_transactional=False,
        producer_id=12,
        producer_epoch=3,
        base_sequence=4,
        batch_size=1 << 20,
    )
    for delta, (key, value, headers) in enumerate(RECORDS):
        assert batches.append(delta, timestamp=NOW_MS + delta, key=key, value=value, headers=headers)
    batch = bytes(batches.build())
    header = BatchHeader.parse(batch)
    assert header.codec == codec
    assert validate(batch, topic_policy({}), NOW_MS, 9) == header.draft()
    read = ours(batch)
    assert [(record.key, record.value) for record in read] == [(key, value) for key, value, _ in RECORDS]
    assert [record.timestamp_ms for record in read] == [NOW_MS + n for n in range(4)]
    assert read == kafka_records(batch, AioBatch)


@pytest.mark.parametrize("reader", [AioBatch, KafkaPythonBatch])
@pytest.mark.parametrize(("source", "target"), list(itertools.product(CODECS, list(Codec))))
def test_real_consumers_read_what_was_recompressed(source: str, target: Codec, reader: Any) -> None:
    batch = build_batch(RECORDS, codec=source, timestamps_ms=[NOW_MS + n for n in range(4)])
    rewritten = recompress(batch, target)
    header = BatchHeader.parse(rewritten)
    assert header.codec == target
    assert validate(rewritten, topic_policy({}), NOW_MS, 9) == header.draft()
    assert kafka_records(rewritten, reader) == ours(batch)


def test_log_append_time_is_stamped_into_a_copy() -> None:
    batch = build_batch(RECORDS, timestamps_ms=[NOW_MS - n for n in range(4)])
    stamped = stamp_log_append_time(batch, NOW_MS + 99)
    header = BatchHeader.parse(stamped)
    assert header.attributes == 8 and header.max_timestamp_ms == NOW_MS + 99
    assert header.crc == crc32c.crc32c(stamped[21:])
    assert {record.timestamp_ms for record in iterate_records(stamped)} == {NOW_MS + 99}
    assert kafka_records(bytes(stamped), AioBatch) == list(iterate_records(stamped))
    assert BatchHeader.parse(batch).attributes == 0


def test_java_can_read_our_lz4() -> None:
    """KafkaLZ4BlockInputStream takes only independent blocks of at most 4 MiB."""
    for size in (0, 1, 100_000, 5_000_000):
        frame = compress(Codec.LZ4, b"ab" * size)
        flags, descriptor = frame[4], frame[5]
        assert flags >> 6 == 1 and flags & 0x20, "version 1, independent blocks"
        assert descriptor >> 4 & 7 in (4, 5, 6, 7)


def test_snappy_is_written_as_java_writes_it() -> None:
    framed = compress(Codec.SNAPPY, b"x" * 70_000)
    assert framed[:16] == b"\x82SNAPPY\0\0\0\0\1\0\0\0\1"
    lengths, position = [], 16
    while position < len(framed):
        (length,) = struct.unpack_from(">i", framed, position)
        lengths.append(cramjam.snappy.decompress_raw_len(framed[position + 4 : position + 4 + length]))
        position += 4 + length
    assert lengths == [32_768, 32_768, 4_464]
    assert aiokafka.codec.snappy_decode(framed) == b"x" * 70_000


def test_frames_that_clients_write_differently() -> None:
    plain = b"some records " * 10_000
    for codec, data in (
        (Codec.SNAPPY, bytes(cramjam.snappy.compress_raw(plain))),
        (Codec.SNAPPY, aiokafka.codec.snappy_encode(plain)),
        (Codec.LZ4, bytes(cramjam.lz4.compress(plain))),
        (Codec.LZ4, aiokafka.codec.lz4_encode(plain)),
        (Codec.GZIP, gzip.compress(plain[:999]) + gzip.compress(plain[999:])),
        (Codec.ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(plain)),
        (Codec.ZSTD, streamed_zstd(plain)),
    ):
        assert decompress(codec, data, 1 << 20) == plain
        assert decompress(codec, data, len(plain)) == plain
        with pytest.raises(ExpansionLimit):
            decompress(codec, data, len(plain) - 1)


def streamed_zstd(plain: bytes) -> bytes:
    """As Java's ZstdOutputStream: blocks flushed as they come, the length unknown at the start."""
    compressor = zstandard.ZstdCompressor().compressobj()
    half = len(plain) // 2
    return (
        compressor.compress(plain[:half])
        + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        + compressor.compress(plain[half:])
        + compressor.flush()
    )


@pytest.mark.parametrize("codec", [codec for codec in Codec if codec])
def test_a_bomb_is_refused_before_it_takes_memory(codec: Codec) -> None:
    bomb = compress(codec, bytes(32 << 20))
    assert len(bomb) < 2 << 20
    with pytest.raises(ExpansionLimit):
        decompress(codec, bomb, 4 << 20)


@pytest.mark.parametrize(
    "data",
    [
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x01\x00\x00",
        b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00",
        b"\x28\xb5\x2f\xfd",
        b"",
    ],
)
def test_lying_zstd_headers(data: bytes) -> None:
    with pytest.raises(MalformedRecords):
        decompress(Codec.ZSTD, data, 1 << 20)


def test_lying_snappy_lengths() -> None:
    for data in (b"", b"\xff\xff\xff\xff\x0f", b"\x82SNAPPY\0\0\0\0\1\0\0\0\1\x7f\xff\xff\xff", b"\x82SNAPPY\0"):
        with pytest.raises(MalformedRecords):
            decompress(Codec.SNAPPY, data, 1 << 20)


@pytest.mark.parametrize("codec", [codec for codec in Codec if codec])
def test_truncated_data_is_malformed_at_every_byte(codec: Codec) -> None:
    whole = compress(codec, b"records " * 20)
    for end in range(len(whole)):
        try:
            shorter = decompress(codec, whole[:end], 1 << 20)
        except MalformedRecords:
            continue
        # A xerial stream cut before its first block is an empty one.
        assert codec is Codec.SNAPPY and shorter == b"" and end == 16


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80" * 11,
        b"\x0e\x00\x00\x00\x01\x7f",
        b"\x10\x00\x00\x00\x01\x01\xfe\xff\xff\xff\x0f\x00",
        b"\x10\x00\x00\x00\x01\x01\x03\x00\x00",
        b"\x0e\x00\x00\x02\x01\x01\x00\x00",
        b"\x0c\x00\x00\x00\x01\x01\x00extra",
        b"\x0e\x00\x00\x00\x01\x01\x00\x00",
        b"\x0e\x00\x00\x00\x01\x01\x02\x00",
        b"\x12\x00\x00\x00\x01\x01\x02\x01\x00",
    ],
)
def test_hostile_records_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRecords):
        list(iterate_records(build_batch(body=body)))


def test_timestamps_beyond_64_bits_are_malformed() -> None:
    batch = build_batch([b"v"], base_timestamp_ms=0, timestamps_ms=[2**62])
    broken = bytearray(batch)
    struct.pack_into(">q", broken, 27, 2**63 - 1)
    with pytest.raises(MalformedRecords):
        list(iterate_records(broken))


def store(payload: bytes, configs: dict[str, str]) -> Any:
    header = BatchHeader.parse(payload)
    policy = topic_policy(configs)
    assert needs_rewrite(header, policy) == (configs != {})
    assert stores_as_sent(policy) == (configs == {})
    return asyncio.run(rewrite(payload, header, policy, NOW_MS))


def test_a_topic_that_stores_what_was_sent_stores_the_same_buffer() -> None:
    batch = build_batch(codec="gzip")
    assert store(batch, {}) is batch
    assert not needs_rewrite(BatchHeader.parse(batch), topic_policy({"compression.type": "gzip"}))


@pytest.mark.parametrize("configs", [{"cleanup.policy": "compact"}, {"message.timestamp.before.max.ms": "1000"}])
def test_rules_about_single_records_are_checked_on_the_way(configs: dict[str, str]) -> None:
    right = build_batch([(b"key", b"value")], codec="lz4")
    assert store(right, configs) is right
    wrong = store(build_batch([b"no key"], base_timestamp_ms=NOW_MS - 2000), configs)
    assert isinstance(wrong, BatchFault) and len(wrong.record_errors) == 1
    both = store(right, {**configs, "compression.type": "zstd", "message.timestamp.type": "LogAppendTime"})
    assert BatchHeader.parse(both).attributes == 8 | 4


def test_a_topics_codec_and_append_time_apply_together() -> None:
    batch = build_batch(RECORDS, codec="gzip")
    stored = store(batch, {"compression.type": "zstd", "message.timestamp.type": "LogAppendTime"})
    header = BatchHeader.parse(stored)
    assert (header.attributes, header.max_timestamp_ms) == (8 | 4, NOW_MS)
    assert [record.value for record in iterate_records(stored)] == [value for _, value, _ in RECORDS]


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (build_batch([bytes(5_000_000)], codec="zstd"), FaultCode.MESSAGE_TOO_LARGE),
        (build_batch([bytes(80_000_000)], codec="zstd"), FaultCode.MESSAGE_TOO_LARGE),
        (build_batch(attributes=4, body=b"junk"), FaultCode.INVALID_RECORD),
    ],
    ids=["beyond max.message.bytes", "bomb", "junk"],
)
def test_what_cannot_be_stored_as_the_topic_wants(batch: bytes, code: FaultCode) -> None:
    fault = store(batch, {"compression.type": "uncompressed"})
    assert isinstance(fault, BatchFault) and fault.code is code


def test_the_walk_is_lazy_and_ends_with_the_count() -> None:
    def take(records: Sequence[bytes], count: int) -> list[Record]:
        return list(itertools.islice(iterate_records(build_batch(records)), count))

    assert [record.offset_delta for record in take([b"v"] * 1000, 3)] == [0, 1, 2]
