"""Compaction by key (``cleanup.policy=compact``): which records of a batch stay, and the batch without others. Pure.

Kafka's rules (``Cleaner.shouldRetainRecord`` of its log cleaner, ``MemoryRecords.filterTo``, KIP-534):

- a record stays if no later one has its key, as far as the map reaches;
- one without a value (a tombstone) goes too, when the *delete horizon* of its batch has passed. The horizon is set when
  a cleaning first finds a tombstone in a batch that stays: now plus ``delete.retention.ms``, in the place of the base
  timestamp, with an attribute bit that says so;
- batches keep base and last offset and what they say of their producer; what is read at an offset never changes, it
  only goes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import crc32c

from ingest.batch_header import CHECKED_FROM, HEADER, LENGTH_OVERHEAD, LOG_APPEND_TIME_BIT, NO_TIMESTAMP, BatchHeader
from ingest.codecs import Codec, compress
from ingest.compression import Record, iterate_records
from storage.store import Chunk

DELETE_HORIZON_BIT = 0x40
KEY_BYTES = 16
"""Of a key's hash, as in Kafka's map (which uses MD5)."""
ENTRY_BYTES = 160
"""What a key takes in the map, about."""
_MAGIC = 2
_CRC = struct.Struct(">I")
_CRC_POSITION = 17


class OffsetMap:
    """Of each key the last offset, up to and with ``end_offset``; bounded."""

    def __init__(self, keys_max: int) -> None:
        self.end_offset = -1
        self._offsets: dict[bytes, int] = {}
        self._keys_max = keys_max

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, base_offset: int, last_offset: int, records: Iterable[Record]) -> bool:
        """The next batch; False, and nothing is added, when there may be no room for all its keys."""
        batch = {_digest(record.key): base_offset + record.offset_delta for record in records if record.key is not None}
        if len(self._offsets) + len(batch) > self._keys_max:
            return False
        self._offsets.update(batch)
        self.end_offset = last_offset
        return True

    def is_last(self, key: bytes, offset: int) -> bool:
        """Whether no later record with this key is known."""
        return offset >= self._offsets.get(_digest(key), -1)


@dataclass(frozen=True, slots=True)
class Rules:
    """Of a topic, and of one cleaning. Milliseconds."""

    now_ms: int
    delete_retention_ms: int


def clean_batch(batch: Chunk, offsets: OffsetMap, rules: Rules, bytes_max: int) -> Chunk | None:
    """``batch``, which carries its offsets, without the records that go; itself when all stay, None when none does.

    :raises ingest.batch_header.MalformedRecords: its records cannot be read; it must stay as it is.
    """
    header = BatchHeader.parse(batch)
    horizon = header.base_timestamp_ms if header.attributes & DELETE_HORIZON_BIT else None
    records = list(iterate_records(batch, bytes_max, dense=False))
    kept = [record for record in records if _stays(record, header.base_offset, horizon, offsets, rules)]
    if not kept:
        return None
    sets_horizon = horizon is None and any(record.value is None for record in kept)
    if len(kept) == len(records) and not sets_horizon:
        return batch
    if sets_horizon:
        horizon = rules.now_ms + rules.delete_retention_ms
    return _rebuilt(header, kept, horizon)


def empty_batch(base_offset: int, last_offset: int) -> bytes:
    """A batch without records that stands for offsets whose records are gone."""
    header = BatchHeader(base_offset, 0, 0, _MAGIC, 0, 0, last_offset - base_offset, -1, NO_TIMESTAMP, -1, -1, -1, 0)
    return _assembled(header, b"")


def _stays(record: Record, base_offset: int, horizon: int | None, offsets: OffsetMap, rules: Rules) -> bool:
    offset = base_offset + record.offset_delta
    if offset > offsets.end_offset:
        return True
    if record.key is None or not offsets.is_last(record.key, offset):
        return False
    return record.value is not None or horizon is None or rules.now_ms < horizon


def _rebuilt(header: BatchHeader, kept: Sequence[Record], horizon: int | None) -> bytes:
    base_timestamp_ms = kept[0].timestamp_ms if horizon is None else horizon
    appended = bool(header.attributes & LOG_APPEND_TIME_BIT)
    plain = bytearray()
    for record in kept:
        _write_record(plain, record, 0 if appended else record.timestamp_ms - base_timestamp_ms)
    attributes = header.attributes & ~DELETE_HORIZON_BIT | (0 if horizon is None else DELETE_HORIZON_BIT)
    latest = header.max_timestamp_ms if appended else max(record.timestamp_ms for record in kept)
    renewed = BatchHeader(
        header.base_offset,
        0,
        0,
        _MAGIC,
        0,
        attributes,
        header.last_offset_delta,
        base_timestamp_ms,
        latest,
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
        len(kept),
    )
    return _assembled(renewed, compress(Codec(header.codec), bytes(plain)))


def _assembled(header: BatchHeader, body: bytes) -> bytes:
    fields = [getattr(header, name) for name in BatchHeader.__struct_fields__]
    fields[1] = HEADER.size - LENGTH_OVERHEAD + len(body)
    batch = bytearray(HEADER.pack(*fields))
    batch += body
    _CRC.pack_into(batch, _CRC_POSITION, crc32c.crc32c(bytes(batch[CHECKED_FROM:])))
    return bytes(batch)


def _write_record(out: bytearray, record: Record, timestamp_delta: int) -> None:
    body = bytearray(b"\0")
    _write_varint(body, timestamp_delta)
    _write_varint(body, record.offset_delta)
    for part in (record.key, record.value):
        _write_bytes(body, part)
    _write_varint(body, len(record.headers))
    for name, value in record.headers:
        _write_bytes(body, name)
        _write_bytes(body, value)
    _write_varint(out, len(body))
    out += body


def _write_bytes(out: bytearray, part: bytes | None) -> None:
    _write_varint(out, -1 if part is None else len(part))
    out += part or b""


def _write_varint(out: bytearray, value: int) -> None:
    """Zigzag, as in Kafka's ``ByteUtils.writeVarlong``."""
    rest = (value << 1) ^ (value >> 63)
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=KEY_BYTES).digest()
