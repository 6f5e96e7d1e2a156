"""The 61 bytes every Kafka v2 record batch begins with. Source: org.apache.kafka.common.record.DefaultRecordBatch."""

from __future__ import annotations

import struct

import msgspec

from metadata.model import BatchDraft
from storage.store import Chunk

HEADER_BYTES = 61
LENGTH_OVERHEAD = 12
"""``batch_length`` counts from after itself: base offset (8) and the length field (4) are not in it."""
CRC_POSITION = 17
CHECKED_FROM = 21
"""The CRC32C covers everything from here (the attributes) to the end."""
ATTRIBUTES_POSITION = 21
MAX_TIMESTAMP_POSITION = 35

CODEC_MASK = 0x07
LOG_APPEND_TIME_BIT = 0x08
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20

NO_TIMESTAMP = -1
NO_SEQUENCE = -1

HEADER = struct.Struct(">qiibIhiqqqhii")
"""The fields of :class:`BatchHeader`, in order."""
assert HEADER.size == HEADER_BYTES


class MalformedRecords(Exception):
    """These bytes are not what their producer says they are. Whose fault: the producer's."""


class ExpansionLimit(MalformedRecords):
    """The records would take more memory than allowed once decompressed (a zip bomb, or a huge batch)."""


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """Field for field as on the wire (big-endian). Timestamps in milliseconds."""

    base_offset: int
    batch_length: int
    partition_leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @classmethod
    def parse(cls, payload: Chunk, position: int = 0) -> BatchHeader:
        """The header at ``position``; only its size is checked. About a microsecond.

        :raises MalformedRecords: fewer than 61 bytes are left there.
        """
        try:
            return cls(*HEADER.unpack_from(payload, position))
        except struct.error:
            raise MalformedRecords(f"a record batch has at least {HEADER_BYTES} bytes, got {len(payload)}") from None

    @property
    def byte_length(self) -> int:
        """Of the whole batch, as it claims."""
        return self.batch_length + LENGTH_OVERHEAD

    @property
    def codec(self) -> int:
        """Number of the compression codec, 0 to 7 (Kafka knows 0 to 4)."""
        return self.attributes & CODEC_MASK

    def draft(self) -> BatchDraft:
        """The batch as a segment's footer and its commit describe it."""
        return BatchDraft(
            self.byte_length,
            self.record_count,
            self.max_timestamp_ms,
            self.producer_id,
            self.producer_epoch,
            self.base_sequence,
        )
