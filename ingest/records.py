"""Validation of produced record batches, in Kafka's order and with Kafka's errors. Pure.

Sources: ``ProduceRequest.validateRecords``, ``UnifiedLog.analyzeAndValidateRecords``, ``LogValidator``. The rules about
producer state (sequences, epochs) are the commit's; ``acks`` is the handler's.

**How deep.** Kafka decompresses and walks every record of every batch. Here a batch is opaque but for its header, so
that the cost does not follow the number of records:

- always: everything the header says, its CRC32C, and that ``record_count`` records fit at all (uncompressed);
- uncompressed batches of up to :data:`COUNTED_RECORDS_MAX` records: the records are counted by their lengths;
- topics that need it (:func:`needs_walk`: compacted, or with ``message.timestamp.before.max.ms``): every record,
  decompressed, bounded, by :func:`validate_records`, which :func:`ingest.rewrite.rewrite` calls off the event loop.

A producer can thus store a compressed batch whose *inside* is garbage; its consumers will say so. It cannot disturb
other partitions, offsets, or the agent. Control batches and transactions are refused.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

import crc32c
import msgspec

from ingest.batch_header import (
    CHECKED_FROM,
    CODEC_MASK,
    CONTROL_BIT,
    HEADER,
    HEADER_BYTES,
    LENGTH_OVERHEAD,
    LOG_APPEND_TIME_BIT,
    NO_TIMESTAMP,
    TRANSACTIONAL_BIT,
    BatchHeader,
    ExpansionLimit,
    MalformedRecords,
)
from ingest.codecs import Codec
from ingest.compression import iterate_records
from metadata.model import BatchDraft
from metadata.topic_configs import TopicPolicy
from storage.store import Chunk

COUNTED_RECORDS_MAX = 32
"""Counting a record takes about 0.1 µs; beyond so many the count is only bounded."""
WALKED_RECORDS_MAX = 500_000
"""More would keep a thread busy for seconds: a batch of the smallest records, made to do that."""
RECORD_BYTES_MIN = 7
"""Length, attributes, two deltas, two lengths and a header count: one byte each."""
ZSTD_SINCE_PRODUCE_VERSION = 7
_TWO_BYTES = struct.Struct(">H")
_BEYOND = 1 << 40
_RECORD_ERRORS_MAX = 3
_NO_LOWER_LIMIT_MS = 2**63 - 1
_MAGIC = 2
_KNOWN_CODECS = int(max(Codec))
_ZSTD = int(Codec.ZSTD)


class FaultCode(enum.StrEnum):
    """Why a batch is not taken, by kio's name of Kafka's error code."""

    CORRUPT_MESSAGE = "corrupt_message"
    INVALID_RECORD = "invalid_record"
    INVALID_TIMESTAMP = "invalid_timestamp"
    INVALID_TXN_STATE = "invalid_txn_state"
    MESSAGE_TOO_LARGE = "message_too_large"
    UNSUPPORTED_COMPRESSION_TYPE = "unsupported_compression_type"


class RecordError(msgspec.Struct, frozen=True):
    """One record of the batch that is at fault (Produce 8+, KIP-467)."""

    batch_index: int
    message: str


class BatchFault(msgspec.Struct, frozen=True):
    """The batch is refused; nothing of it was taken in."""

    code: FaultCode
    message: str
    record_errors: tuple[RecordError, ...] = ()


def validate(payload: Chunk | None, policy: TopicPolicy, now_ms: int, produce_version: int) -> BatchDraft | BatchFault:
    """What a produce request holds for one partition, as a segment describes it; or the first rule that it breaks.

    A microsecond or two, plus the CRC32C of the bytes. What it takes to look at every record is
    :func:`validate_records`.
    """
    if payload is None:
        return _not_one_batch()
    byte_length = len(payload)
    if byte_length < HEADER_BYTES:
        return _not_one_batch()
    # Every batch of every producer passes here: fields in local names cost half of what a BatchHeader does.
    (
        base_offset,
        batch_length,
        _,
        magic,
        crc,
        attributes,
        last_offset_delta,
        _,
        max_timestamp_ms,
        producer_id,
        producer_epoch,
        base_sequence,
        record_count,
    ) = HEADER.unpack_from(payload)
    if magic != _MAGIC or batch_length + LENGTH_OVERHEAD != byte_length:
        return _not_one_batch()
    codec = attributes & CODEC_MASK
    if codec == _ZSTD and produce_version < ZSTD_SINCE_PRODUCE_VERSION:
        return BatchFault(
            FaultCode.UNSUPPORTED_COMPRESSION_TYPE,
            f"Produce requests with version {produce_version} are not allowed to use ZStandard compression",
        )
    if base_offset != 0:
        return BatchFault(FaultCode.INVALID_RECORD, f"The baseOffset of the batch is {base_offset}, not 0")
    if byte_length > policy.max_message_bytes:
        return too_large(byte_length, policy)
    view = payload if type(payload) is memoryview else memoryview(payload)
    if crc32c.crc32c(view[CHECKED_FROM:]) != crc:
        return BatchFault(FaultCode.CORRUPT_MESSAGE, "Record is corrupt: its CRC32C does not match")
    if record_count <= 0 or last_offset_delta + 1 != record_count:
        return BatchFault(
            FaultCode.INVALID_RECORD,
            f"The batch has {record_count} records and the last offset delta {last_offset_delta}",
        )
    if attributes & ~(CODEC_MASK | LOG_APPEND_TIME_BIT):
        fault = _forbidden_attributes(attributes)
        if fault is not None:
            return fault
    if producer_id >= 0 and base_sequence < 0:
        return BatchFault(
            FaultCode.INVALID_RECORD,
            f"Invalid sequence number {base_sequence} with producerId {producer_id}",
        )
    if codec > _KNOWN_CODECS:
        return BatchFault(FaultCode.INVALID_RECORD, f"Unknown compression type id: {codec}")
    if codec == 0 and not _count_holds(payload, record_count):
        return BatchFault(
            FaultCode.INVALID_RECORD, f"The batch claims {record_count} records, its {byte_length} bytes differ"
        )
    if attributes & LOG_APPEND_TIME_BIT:
        return BatchFault(FaultCode.INVALID_TIMESTAMP, "Producer should not set timestamp type to LogAppendTime")
    if max_timestamp_ms - now_ms > policy.timestamp_after_max_ms and not policy.log_append_time:
        return BatchFault(
            FaultCode.INVALID_TIMESTAMP,
            f"Timestamp {max_timestamp_ms} is more than {policy.timestamp_after_max_ms} ms ahead of {now_ms}",
        )
    return BatchDraft(byte_length, record_count, max_timestamp_ms, producer_id, producer_epoch, base_sequence)


def needs_walk(policy: TopicPolicy) -> bool:
    """Whether this topic has rules about single records."""
    return policy.compacted or policy.timestamp_before_max_ms != _NO_LOWER_LIMIT_MS


def validate_records(
    payload: Chunk, header: BatchHeader, policy: TopicPolicy, now_ms: int, bytes_max: int
) -> BatchFault | None:
    """The rules about single records, for a batch that :func:`validate` has passed. A microsecond or two a record.

    Batches of more than :data:`WALKED_RECORDS_MAX` records, or ``bytes_max`` uncompressed, are too large for this.
    """
    if header.record_count > WALKED_RECORDS_MAX:
        return BatchFault(FaultCode.MESSAGE_TOO_LARGE, f"More than {WALKED_RECORDS_MAX} records in a batch")
    try:
        errors = list(_first(_record_errors(payload, policy, now_ms, bytes_max)))
    except ExpansionLimit as error:
        return BatchFault(FaultCode.MESSAGE_TOO_LARGE, str(error))
    except MalformedRecords as error:
        return BatchFault(FaultCode.INVALID_RECORD, str(error))
    if not errors:
        return None
    code = errors[0][0]
    return BatchFault(
        code,
        "One or more records have been rejected",
        tuple(error for error_code, error in errors if error_code == code),
    )


def _not_one_batch() -> BatchFault:
    return BatchFault(
        FaultCode.INVALID_RECORD, "Produce requests must have exactly one record batch of magic 2 per partition"
    )


def too_large(byte_length: int, policy: TopicPolicy) -> BatchFault:
    """Kafka's answer to a batch over ``max.message.bytes``; a Java producer then splits it."""
    return BatchFault(
        FaultCode.MESSAGE_TOO_LARGE,
        f"The record batch size is {byte_length} bytes which exceeds the maximum configured value of "
        f"{policy.max_message_bytes}",
    )


def _forbidden_attributes(attributes: int) -> BatchFault | None:
    if attributes & CONTROL_BIT:
        return BatchFault(FaultCode.INVALID_RECORD, "Clients are not allowed to write control records")
    if attributes & TRANSACTIONAL_BIT:
        return BatchFault(FaultCode.INVALID_TXN_STATE, "Transactions are not supported")
    return None


def _count_holds(payload: Chunk, record_count: int) -> bool:
    """Whether ``record_count`` records fill the rest of an uncompressed batch, going by their lengths; many are only
    bounded."""
    position = HEADER_BYTES
    end = len(payload)
    if record_count > COUNTED_RECORDS_MAX:
        return record_count * RECORD_BYTES_MIN <= end - position
    start = 0
    try:
        for _ in range(record_count):
            start = position
            (prefix,) = _TWO_BYTES.unpack_from(payload, position)
            position += _STEPS[prefix] or _long_step(payload, position)
    except (struct.error, IndexError):
        return False
    return position == end and start <= end - RECORD_BYTES_MIN


def _steps() -> tuple[int, ...]:
    """By the first two bytes of a record, how far away the next one is: its length is a zigzag varint before the rest.

    0 where the varint is longer than that; beyond every payload where the length is negative.
    """
    steps: list[int] = []
    for first in range(256):
        if first & 1:
            steps += [_BEYOND] * 256
        elif first < 0x80:
            steps += [1 + (first >> 1)] * 256
        else:
            steps += [2 + ((first & 0x7F | second << 7) >> 1) for second in range(0x80)]
            steps += [0] * 0x80
    return tuple(steps)


_STEPS = _steps()


def _long_step(payload: Chunk, position: int) -> int:
    """As ``_STEPS``, for a length of three to five bytes.

    :raises IndexError: it takes more, or the payload ends before.
    """
    length = shift = 0
    for index in range(5):
        byte = payload[position + index]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return index + 1 + (length >> 1)
        shift += 7
    raise IndexError


def _record_errors(
    payload: Chunk, policy: TopicPolicy, now_ms: int, bytes_max: int
) -> Iterator[tuple[FaultCode, RecordError]]:
    for record in iterate_records(payload, bytes_max):
        if policy.compacted and record.key is None:
            yield (
                FaultCode.INVALID_RECORD,
                RecordError(record.offset_delta, "Compacted topic cannot accept message without key"),
            )
        elif not policy.log_append_time and record.timestamp_ms != NO_TIMESTAMP:
            behind_ms = now_ms - record.timestamp_ms
            if behind_ms > policy.timestamp_before_max_ms or -behind_ms > policy.timestamp_after_max_ms:
                yield (
                    FaultCode.INVALID_TIMESTAMP,
                    RecordError(record.offset_delta, f"Timestamp {record.timestamp_ms} is out of range"),
                )


def _first(errors: Iterator[tuple[FaultCode, RecordError]]) -> Iterator[tuple[FaultCode, RecordError]]:
    """A few say it all; the walk still goes to the end, so that a malformed batch is called malformed."""
    for count, error in enumerate(errors):
        if count < _RECORD_ERRORS_MAX:
            yield error
