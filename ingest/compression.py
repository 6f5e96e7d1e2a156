"""What must look inside a record batch: walking its records, and rewriting it for a topic's configs.

The data path never comes here unless a topic asks for it: ``compression.type`` other than ``producer``,
``message.timestamp.type=LogAppendTime``, compaction, or a search for a timestamp. Everything is bounded and every
fault of the bytes is a :class:`MalformedRecords`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import crc32c
import msgspec

from ingest.batch_header import (
    ATTRIBUTES_POSITION,
    CHECKED_FROM,
    CODEC_MASK,
    CRC_POSITION,
    HEADER_BYTES,
    LENGTH_OVERHEAD,
    LOG_APPEND_TIME_BIT,
    MAX_TIMESTAMP_POSITION,
    BatchHeader,
    ExpansionLimit,
    MalformedRecords,
)
from ingest.codecs import Codec, compress, decompress
from storage.store import Chunk

EXPANDED_BYTES_MAX = 32 << 20
"""A batch may take so much memory uncompressed, whatever it claims: 30 times Kafka's default ``max.message.bytes``."""

CODEC_OF_TYPE = {
    "uncompressed": Codec.NONE,
    "gzip": Codec.GZIP,
    "snappy": Codec.SNAPPY,
    "lz4": Codec.LZ4,
    "zstd": Codec.ZSTD,
}
"""Kafka's ``compression.type`` values (other than ``producer``)."""

_VARINT_BYTES_MAX = 10
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_INT = struct.Struct(">i")
_SHORT = struct.Struct(">h")
_LONG = struct.Struct(">q")
_CRC = struct.Struct(">I")
_LENGTH_POSITION = 8


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of a batch. Its offset is the batch's base offset plus ``offset_delta``."""

    offset_delta: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...]


def iterate_records(batch: Chunk, bytes_max: int = EXPANDED_BYTES_MAX, *, dense: bool = True) -> Iterator[Record]:
    """The records of one whole v2 batch in order, decompressed as needed; takes as many as the header counts.

    Checked on the way: every length, offset deltas 0, 1, 2, ..., and that nothing is left over. Producers send dense
    batches; those of compacted topics have gaps, which are taken with ``dense`` false: then the deltas must rise.

    :raises MalformedRecords: during the iteration, where the bytes stop making sense.
    """
    header = BatchHeader.parse(batch)
    plain = _plain_records(batch, header, bytes_max)
    log_append_time = header.attributes & LOG_APPEND_TIME_BIT
    position = 0
    last_delta = -1
    try:
        for expected_delta in range(header.record_count):
            length, position = _varint(plain, position)
            end = position + length
            if length <= 0 or end > len(plain):
                raise MalformedRecords(f"record {expected_delta} of {length} bytes in {len(plain) - position}")
            timestamp_delta, position = _varint(plain, position + 1)
            offset_delta, position = _varint(plain, position)
            key, position = _nullable(plain, position, end)
            value, position = _nullable(plain, position, end)
            headers, position = _headers(plain, position, end)
            if position != end:
                raise MalformedRecords(f"record {expected_delta} ends at byte {position}, not {end}")
            if offset_delta != expected_delta and (dense or not last_delta < offset_delta <= header.last_offset_delta):
                raise MalformedRecords(f"record {expected_delta} has the offset delta {offset_delta}")
            last_delta = offset_delta
            timestamp_ms = header.max_timestamp_ms if log_append_time else header.base_timestamp_ms + timestamp_delta
            if not _INT64_MIN <= timestamp_ms <= _INT64_MAX:
                raise MalformedRecords(f"record {expected_delta} has the timestamp {timestamp_ms}")
            yield Record(offset_delta, timestamp_ms, key, value, headers)
    except IndexError:
        raise MalformedRecords("records end early") from None
    if position != len(plain):
        raise MalformedRecords(f"{len(plain) - position} bytes after the last record")


def recompress(batch: Chunk, codec: Codec, bytes_max: int = EXPANDED_BYTES_MAX) -> bytes:
    """A copy of ``batch`` with its records in ``codec``: new length, codec bits and CRC32C.

    The header's record count is trusted. CPU-bound: :func:`ingest.rewrite.rewrite` does it off the event loop.

    :raises MalformedRecords: the records cannot be decompressed, or not within ``bytes_max``.
    """
    header = BatchHeader.parse(batch)
    body = compress(codec, _plain_records(batch, header, bytes_max))
    copy = bytearray(memoryview(batch)[:HEADER_BYTES])
    copy += body
    _INT.pack_into(copy, _LENGTH_POSITION, len(copy) - LENGTH_OVERHEAD)
    _SHORT.pack_into(copy, ATTRIBUTES_POSITION, header.attributes & ~CODEC_MASK | codec)
    _renew_crc(copy)
    return bytes(copy)


def stamp_log_append_time(batch: Chunk, now_ms: int) -> bytearray:
    """A copy of ``batch`` whose records all have the time ``now_ms`` (message.timestamp.type=LogAppendTime).

    The batch says so in one place: attribute bit 3, with ``now_ms`` as its maximum timestamp.
    """
    copy = bytearray(batch)
    (attributes,) = _SHORT.unpack_from(copy, ATTRIBUTES_POSITION)
    _SHORT.pack_into(copy, ATTRIBUTES_POSITION, attributes | LOG_APPEND_TIME_BIT)
    _LONG.pack_into(copy, MAX_TIMESTAMP_POSITION, now_ms)
    _renew_crc(copy)
    return copy


def _renew_crc(batch: bytearray) -> None:
    with memoryview(batch) as whole:
        _CRC.pack_into(batch, CRC_POSITION, crc32c.crc32c(whole[CHECKED_FROM:]))


def _plain_records(batch: Chunk, header: BatchHeader, bytes_max: int) -> bytes:
    if header.codec not in Codec._value2member_map_:
        raise MalformedRecords(f"unknown compression codec {header.codec}")
    body = memoryview(batch)[HEADER_BYTES:]
    if header.codec == Codec.NONE and len(body) > bytes_max:
        raise ExpansionLimit(f"records take more than {bytes_max} bytes")
    return decompress(Codec(header.codec), body, bytes_max)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag varint of up to 64 bits and where it ends; IndexError beyond the data."""
    byte = data[position]
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), position + 1
    value = byte & 0x7F
    for count in range(1, _VARINT_BYTES_MAX):
        byte = data[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            value &= 0xFFFF_FFFF_FFFF_FFFF
            return (value >> 1) ^ -(value & 1), position + count + 1
    raise MalformedRecords("a varint of more than 10 bytes")


def _nullable(data: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    length, position = _varint(data, position)
    if length < 0:
        if length == -1:
            return None, position
        raise MalformedRecords(f"length {length}")
    if length > end - position:
        raise MalformedRecords(f"{length} bytes where {end - position} are left")
    return data[position : position + length], position + length


def _headers(data: bytes, position: int, end: int) -> tuple[tuple[tuple[bytes, bytes | None], ...], int]:
    count, position = _varint(data, position)
    if count == 0:
        return (), position
    if count < 0 or count * 2 > end - position:
        raise MalformedRecords(f"{count} headers in {end - position} bytes")
    headers = []
    for _ in range(count):
        name, position = _nullable(data, position, end)
        if name is None:
            raise MalformedRecords("a header without a name")
        value, position = _nullable(data, position, end)
        headers.append((name, value))
    return tuple(headers), position
