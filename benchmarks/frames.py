"""Pre-encoded Kafka requests for the load generators: built once, sent many times, so that the generator costs little.

Only versions every peer speaks are used: Metadata 4 (creates topics), Produce 7, Fetch 11, ListOffsets 1.
"""

from __future__ import annotations

import struct

import crc32c

_RECORD_VALUE = (
    b'2026-11-23T14:30:%02d.%06dZ host-%04d payments[%d]: level=info msg="order accepted" order=%012d '
    b"venue=XNYS latency_us=%d user=%08x session=%016x "
)


def _varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def log_line(number: int, byte_length: int) -> bytes:
    """A log line of exactly ``byte_length`` bytes, different for each ``number``."""
    n = number * 2654435761 % 2**32
    line = _RECORD_VALUE % (number % 60, n % 10**6, n % 9973, n % 32768, number, n % 5000, n, n * 31)
    return (line * (byte_length // len(line) + 1))[:byte_length]


def record_batch(record_count: int, value_bytes: int, timestamp_ms: int, first: int = 0) -> bytes:
    """An uncompressed v2 batch of ``record_count`` records without keys."""
    records = bytearray()
    for delta in range(record_count):
        value = log_line(first + delta, value_bytes)
        body = b"\x00" + _varint(0) + _varint(delta) + _varint(-1) + _varint(len(value)) + value + _varint(0)
        records += _varint(len(body)) + body
    after_crc = (
        struct.pack(">hiqqqhii", 0, record_count - 1, timestamp_ms, timestamp_ms, -1, -1, -1, record_count) + records
    )
    crc = crc32c.crc32c(after_crc)
    return struct.pack(">qiibI", 0, len(after_crc) + 9, -1, 2, crc) + after_crc


def _string(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">h", len(raw)) + raw


def _request(api_key: int, version: int, body: bytes, correlation_id: int = 1) -> bytes:
    payload = struct.pack(">hhi", api_key, version, correlation_id) + _string("bench") + body
    return struct.pack(">i", len(payload)) + payload


def metadata_request(topics: list[str], create: bool = True) -> bytes:
    body = struct.pack(">i", len(topics)) + b"".join(map(_string, topics)) + struct.pack(">?", create)
    return _request(3, 4, body)


def produce_request(topic: str, batches: dict[int, bytes], acks: int = -1) -> bytes:
    """One Produce 7 request with one batch per partition given."""
    body = (
        struct.pack(">hhi", -1, acks, 30_000) + struct.pack(">i", 1) + _string(topic) + struct.pack(">i", len(batches))
    )
    parts = [body]
    for partition, batch in batches.items():
        parts += [struct.pack(">ii", partition, len(batch)), batch]
    return _request(0, 7, b"".join(parts))


def fetch_request(topic: str, partition: int, offset: int, max_bytes: int, max_wait_ms: int = 500) -> bytes:
    body = struct.pack(">iiiibii", -1, max_wait_ms, 1, max_bytes, 0, 0, -1)
    body += struct.pack(">i", 1) + _string(topic) + struct.pack(">i", 1)
    body += struct.pack(">iiqqi", partition, -1, offset, -1, max_bytes)
    return _request(1, 11, body + struct.pack(">i", 0) + _string(""))


def list_offsets_request(topic: str, partition: int, timestamp: int) -> bytes:
    body = struct.pack(">ii", -1, 1) + _string(topic) + struct.pack(">iiq", 1, partition, timestamp)
    return _request(2, 1, body)


def produce_errors(answer: memoryview) -> set[int]:
    """Error codes other than 0 in a Produce 7 answer (correlation id first)."""
    errors, position = set(), 4
    (topic_count,) = struct.unpack_from(">i", answer, position)
    position += 4
    for _ in range(topic_count):
        (length,) = struct.unpack_from(">h", answer, position)
        position += 2 + length
        (partition_count,) = struct.unpack_from(">i", answer, position)
        position += 4
        for _ in range(partition_count):
            errors.add(struct.unpack_from(">h", answer, position + 4)[0])
            position += 30
    return errors - {0}


def fetch_records(answer: memoryview, topic: str) -> tuple[int, memoryview]:
    """(error code, record bytes) of a one-partition Fetch 11 answer (correlation id first)."""
    position = 4 + 4 + 2 + 4 + 4 + 2 + len(topic.encode()) + 4
    _partition, error, _hw, _lso, _start, aborted = struct.unpack_from(">ihqqqi", answer, position)
    position += 34 + max(aborted, 0) * 16 + 4
    (length,) = struct.unpack_from(">i", answer, position)
    position += 4
    return error, answer[position : position + max(length, 0)]


def next_offset(records: memoryview, offset: int) -> tuple[int, int]:
    """(offset after the last whole batch, records in them at or after ``offset``)."""
    position, count, after = 0, 0, offset
    while position + 61 <= len(records):
        base, length = struct.unpack_from(">qi", records, position)
        if position + 12 + length > len(records):
            break
        (last_delta,) = struct.unpack_from(">i", records, position + 23)
        after = base + last_delta + 1
        count += min(last_delta + 1, after - offset)
        position += 12 + length
    return after, count


def batch_timestamps(records: memoryview) -> list[int]:
    """The max timestamp of every whole batch."""
    position, found = 0, []
    while position + 61 <= len(records):
        (length,) = struct.unpack_from(">i", records, position + 8)
        if position + 12 + length > len(records):
            break
        found.append(struct.unpack_from(">q", records, position + 35)[0])
        position += 12 + length
    return found
