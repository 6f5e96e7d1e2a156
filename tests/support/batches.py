"""Builds Kafka v2 record batches byte by byte, right ones and wrong ones, independently of the code under test."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence

import cramjam
import crc32c
import zstandard

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
Headers = Sequence[tuple[str, bytes | None]]
RecordLike = bytes | None | tuple[bytes | None, bytes | None] | tuple[bytes | None, bytes | None, Headers]
"""A value; or (key, value); or (key, value, headers)."""


def varint(value: int) -> bytes:
    """Zigzag varint, as in Kafka's ByteUtils.writeVarlong."""
    rest = ((value << 1) ^ (value >> 63)) & (2**64 - 1)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def build_record(record: RecordLike, offset_delta: int, timestamp_delta: int = 0) -> bytes:
    """One record of a v2 batch, with its length."""
    key: bytes | None = None
    value: bytes | None
    headers: Headers = ()
    if isinstance(record, tuple):
        key, value = record[0], record[1]
        headers = record[2] if len(record) == 3 else ()
    else:
        value = record
    body = bytearray(b"\0")
    body += varint(timestamp_delta) + varint(offset_delta)
    for part in (key, value):
        body += varint(-1) if part is None else varint(len(part)) + part
    body += varint(len(headers))
    for name, content in headers:
        encoded = name.encode()
        body += varint(len(encoded)) + encoded
        body += varint(-1) if content is None else varint(len(content)) + content
    return varint(len(body)) + bytes(body)


def compress_records(records: bytes, codec: str) -> bytes:
    """As real producers do: snappy as one raw block (librdkafka), the others as one frame."""
    match codec:
        case "none":
            return records
        case "gzip":
            return gzip.compress(records)
        case "snappy":
            return bytes(cramjam.snappy.compress_raw(records))
        case "lz4":
            return bytes(cramjam.lz4.compress(records))
        case "zstd":
            return zstandard.ZstdCompressor().compress(records)
    raise ValueError(codec)


def build_batch(
    records: Sequence[RecordLike] = (b"value",),
    *,
    codec: str = "none",
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    base_timestamp_ms: int = 1_700_000_000_000,
    timestamps_ms: Sequence[int] | None = None,
    max_timestamp_ms: int | None = None,
    base_offset: int = 0,
    leader_epoch: int = -1,
    magic: int = 2,
    attributes: int | None = None,
    last_offset_delta: int | None = None,
    record_count: int | None = None,
    batch_length: int | None = None,
    crc: int | None = None,
    body: bytes | None = None,
) -> bytes:
    """A whole batch. Everything after ``timestamps_ms`` is derived unless given, so that a test can lie in one field.

    ``timestamps_ms`` are the records' own times (default: all ``base_timestamp_ms``); ``body`` replaces the
    (compressed) records.
    """
    times = list(timestamps_ms) if timestamps_ms is not None else [base_timestamp_ms] * len(records)
    if body is None:
        plain = b"".join(
            build_record(record, delta, time - base_timestamp_ms)
            for delta, (record, time) in enumerate(zip(records, times, strict=True))
        )
        body = compress_records(plain, codec)
    checked = (
        struct.pack(
            ">hiqqqhii",
            CODECS[codec] if attributes is None else attributes,
            len(records) - 1 if last_offset_delta is None else last_offset_delta,
            base_timestamp_ms,
            max(times, default=-1) if max_timestamp_ms is None else max_timestamp_ms,
            producer_id,
            producer_epoch,
            base_sequence,
            len(records) if record_count is None else record_count,
        )
        + body
    )
    return (
        struct.pack(
            ">qiibI",
            base_offset,
            len(checked) + 9 if batch_length is None else batch_length,
            leader_epoch,
            magic,
            crc32c.crc32c(checked) if crc is None else crc,
        )
        + checked
    )
