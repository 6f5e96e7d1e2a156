"""Produce (API key 0), versions 3-12, by hand: KIP-98, 110, 467 (record errors), 482, 951 (current leader).

The records are not copied: a decoded request says where they lie in its frame. kio's native reader copies them, and
its writer costs several microseconds for a partition; both are what tests compare this module with.

Leaves out: version 13 (topic ids), and throttling (throttle_time_ms is always 0).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.wire.endpoints import NO_LEADER, NodeEndpoint, current_leader, write_endpoints
from agent.wire.errors import DecodeError
from agent.wire.frames import FrameBuffer
from agent.wire.varint import read_uvarint, skip_tags, write_uvarint

FLEXIBLE_FROM: Final = 9
PARTITIONS_MAX: Final = 20_000
"""Most topics and partitions in one request: what is decoded and answered in one go on the event loop."""
NAME_BYTES_MAX: Final = 32_767
"""What the older string type can hold; Kafka's topic names have at most 249."""
NO_RECORDS: Final = -1

_HEADER: Final = struct.Struct(">hhih")
_ACKS_TIMEOUT: Final = struct.Struct(">hi")
_TO_TOPIC_NAME: Final = struct.Struct(">hhiih")
_TO_RECORDS: Final = struct.Struct(">iii")
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_TWO_INT32: Final = struct.Struct(">ii")

PartitionSpan = tuple[int, int, int]
"""(partition, start, end) of its records in the frame's buffer; start is NO_RECORDS when they are null."""


class ProduceRequest(msgspec.Struct, gc=False):
    """A decoded request; the spans in ``topics`` point into the buffer it was decoded from."""

    api_version: int
    correlation_id: int
    transactional_id: str | None = None
    acks: int = 0
    timeout_ms: int = 0
    partition_count: int = 0
    topics: list[tuple[str, list[PartitionSpan]]] = []


def decode_produce(buffer: FrameBuffer, start: int, end: int) -> ProduceRequest:
    """The Produce request that lies in ``buffer`` from ``start`` to ``end``, header included.

    Every length is checked for its sign as it is read, so the position only grows; whether it passed the end is
    checked once, at the end, before anything is done with the request.

    :raises DecodeError: it is not a Produce request of its version.
    """
    try:
        _, api_version, correlation_id, client_id_bytes = _HEADER.unpack_from(buffer, start)
        request = ProduceRequest(api_version, correlation_id)
        position = start + _HEADER.size
        if client_id_bytes > 0:
            position += client_id_bytes
        if api_version < FLEXIBLE_FROM:
            position = _decode_legacy(request, buffer, position)
        else:
            position = _decode_flexible(request, buffer, skip_tags(buffer, position))
    except (struct.error, IndexError):
        raise DecodeError("a Produce request is cut short") from None
    except UnicodeDecodeError:
        raise DecodeError("a topic name is not UTF-8") from None
    if position > end:
        raise DecodeError("a Produce request is cut short")
    return request


def _decode_legacy(request: ProduceRequest, buffer: FrameBuffer, position: int) -> int:
    """Versions 3-8: fixed-size lengths."""
    transactional, acks, timeout_ms, topic_count, name_bytes = _TO_TOPIC_NAME.unpack_from(buffer, position)
    if transactional == -1 and topic_count == 1 and name_bytes >= 0:
        name_end = position + 14 + name_bytes
        partition_count, partition, length = _TO_RECORDS.unpack_from(buffer, name_end)
        if partition_count == 1 and length >= 0:  # what a client sends that does not batch partitions
            request.acks = acks
            request.timeout_ms = timeout_ms
            start = name_end + 12
            end: int = start + length
            request.topics = [(str(buffer[name_end - name_bytes : name_end], "utf-8"), [(partition, start, end)])]
            request.partition_count = 1
            return end
    return _decode_legacy_topics(request, buffer, position)


def _decode_legacy_topics(request: ProduceRequest, buffer: FrameBuffer, position: int) -> int:
    (length,) = _INT16.unpack_from(buffer, position)
    position += 2
    if length >= 0:
        request.transactional_id = str(buffer[position : position + length], "utf-8")
        position += length
    request.acks, request.timeout_ms = _ACKS_TIMEOUT.unpack_from(buffer, position)
    (topic_count,) = _INT32.unpack_from(buffer, position + 6)
    position += 10
    count = _counted(0, topic_count)
    for _ in range(topic_count):
        (length,) = _INT16.unpack_from(buffer, position)
        position += 2
        if length < 0:
            raise DecodeError("a topic name is null")
        name = str(buffer[position : position + length], "utf-8")
        position += length
        (partition_count,) = _INT32.unpack_from(buffer, position)
        position += 4
        count = _counted(count, partition_count)
        spans: list[PartitionSpan] = []
        for _ in range(partition_count):
            partition, length = _TWO_INT32.unpack_from(buffer, position)
            position += 8
            if length < 0:
                spans.append((partition, NO_RECORDS, NO_RECORDS))
                continue
            records_start = position
            position += length
            spans.append((partition, records_start, position))
        request.topics.append((name, spans))
        request.partition_count += partition_count
    return position


def _decode_flexible(request: ProduceRequest, buffer: FrameBuffer, position: int) -> int:
    """Versions 9-12: compact lengths (one more than the length, 0 for null) and tagged fields."""
    length, position = read_uvarint(buffer, position)
    if length > NAME_BYTES_MAX:
        raise DecodeError("a transactional id is too long")
    if length:
        request.transactional_id = str(buffer[position : position + length - 1], "utf-8")
        position += length - 1
    request.acks, request.timeout_ms = _ACKS_TIMEOUT.unpack_from(buffer, position)
    topic_count, position = read_uvarint(buffer, position + 6)
    topic_count -= 1
    count = _counted(0, topic_count)
    for _ in range(topic_count):
        length, position = read_uvarint(buffer, position)
        if not 0 < length <= NAME_BYTES_MAX:
            raise DecodeError("a topic name is null or too long")
        name = str(buffer[position : position + length - 1], "utf-8")
        partition_count, position = read_uvarint(buffer, position + length - 1)
        partition_count -= 1
        count = _counted(count, partition_count)
        spans: list[PartitionSpan] = []
        for _ in range(partition_count):
            (partition,) = _INT32.unpack_from(buffer, position)
            length, records_start = read_uvarint(buffer, position + 4)
            if length == 0:
                position = records_start
                spans.append((partition, NO_RECORDS, NO_RECORDS))
            else:
                position = records_start + length - 1
                spans.append((partition, records_start, position))
            # one zero byte where no tagged fields follow, which is always but in tests
            position = position + 1 if buffer[position] == 0 else skip_tags(buffer, position)
        position = skip_tags(buffer, position)
        request.topics.append((name, spans))
        request.partition_count += partition_count
    return skip_tags(buffer, position)


def _counted(so_far: int, more: int) -> int:
    if more < 0:
        raise DecodeError("an array of a Produce request is null")
    if so_far + more > PARTITIONS_MAX:
        raise DecodeError(f"a Produce request of more than {PARTITIONS_MAX} topics and partitions")
    return so_far + more


@dataclass(frozen=True, slots=True)
class RecordError:
    """One record that caused its batch to be refused (KIP-467). ``batch_index`` counts from 0 in the batch."""

    batch_index: int
    message: str | None


@dataclass(frozen=True, slots=True)
class PartitionRefusal:
    """What a refused partition's row carries besides its code. ``leader_id`` is where to go instead (KIP-951)."""

    error_code: int
    message: str | None = None
    record_errors: tuple[RecordError, ...] = ()
    leader_id: int = NO_LEADER
    log_start_offset: int = -1
    """Java's producers only act on UNKNOWN_PRODUCER_ID when they are told it."""


PartitionAck = tuple[int, int, int, int]
"""(partition, base offset, log append time in ms or -1, log start offset)."""
TopicResults = tuple[str, Sequence[PartitionAck | tuple[int, PartitionRefusal]]]
"""A topic's name and a row per partition: acknowledged, or (partition, why not)."""

_ACK_LEGACY: Final[dict[int, struct.Struct]] = {
    **dict.fromkeys((3, 4), struct.Struct(">ihqq")),
    **dict.fromkeys((5, 6, 7), struct.Struct(">ihqqq")),
    8: struct.Struct(">ihqqqih"),
}
_ROW: Final = struct.Struct(">ihqqq")
_ACK_FLEXIBLE: Final = struct.Struct(">ihqqqBBB")
_PREFIX: Final = struct.Struct(">ii")
_SINGLE_HEAD: Final = struct.Struct(">iiih")
_SINGLE_ROW_V3: Final = struct.Struct(">iihqqi")
_SINGLE_ROW_V5: Final = struct.Struct(">iihqqqi")
_SINGLE_ROW_V8: Final = struct.Struct(">iihqqqihi")
_SINGLE_FLEXIBLE: Final = struct.Struct(">iiBBB")
_SHORT_NAME_BYTES: Final = 126
"""Longest name whose compact length is one byte."""


def encode_single_ack(api_version: int, correlation_id: int, topic: str, ack: PartitionAck) -> bytes:
    """The response frame to a request of one batch that was acknowledged. As :func:`encode_produce_response`."""
    name = topic.encode()
    partition, base_offset, log_append_time_ms, log_start_offset = ack
    if api_version >= FLEXIBLE_FROM:
        if len(name) > _SHORT_NAME_BYTES:
            return encode_produce_response(api_version, correlation_id, [(topic, [ack])])
        head = _SINGLE_FLEXIBLE.pack(len(name) + 47, correlation_id, 0, 2, len(name) + 1)
        row = _ACK_FLEXIBLE.pack(partition, 0, base_offset, log_append_time_ms, log_start_offset, 1, 0, 0)
        return b"%b%b\x02%b\0\0\0\0\0\0" % (head, name, row)
    if api_version >= 8:
        row = _SINGLE_ROW_V8.pack(1, partition, 0, base_offset, log_append_time_ms, log_start_offset, 0, -1, 0)
    elif api_version >= 5:
        row = _SINGLE_ROW_V5.pack(1, partition, 0, base_offset, log_append_time_ms, log_start_offset, 0)
    else:
        row = _SINGLE_ROW_V3.pack(1, partition, 0, base_offset, log_append_time_ms, 0)
    return _SINGLE_HEAD.pack(10 + len(name) + len(row), correlation_id, 1, len(name)) + name + row


def encode_produce_response(
    api_version: int,
    correlation_id: int,
    topics: Sequence[TopicResults],
    endpoints: Sequence[NodeEndpoint] = (),
) -> bytes:
    """A whole response frame. ``endpoints`` and leaders are told from version 10 on."""
    out = bytearray(8)
    if api_version < FLEXIBLE_FROM:
        _encode_legacy(out, api_version, topics)
    else:
        _encode_flexible(out, api_version, topics, endpoints)
    _PREFIX.pack_into(out, 0, len(out) - 4, correlation_id)
    return bytes(out)


def _encode_legacy(out: bytearray, api_version: int, topics: Sequence[TopicResults]) -> None:
    row = _ACK_LEGACY[api_version]
    told_start = api_version >= 5
    told_errors = api_version >= 8
    out += _INT32.pack(len(topics))
    for name, results in topics:
        encoded_name = name.encode()
        out += _INT16.pack(len(encoded_name))
        out += encoded_name
        out += _INT32.pack(len(results))
        for result in results:
            if len(result) == 4:
                partition, base_offset, log_append_time_ms, log_start_offset = result
                if told_errors:
                    out += row.pack(partition, 0, base_offset, log_append_time_ms, log_start_offset, 0, -1)
                elif told_start:
                    out += row.pack(partition, 0, base_offset, log_append_time_ms, log_start_offset)
                else:
                    out += row.pack(partition, 0, base_offset, log_append_time_ms)
                continue
            partition, refusal = result
            refused = _ROW.pack(partition, refusal.error_code, -1, -1, refusal.log_start_offset)
            out += refused if told_start else refused[:-8]
            if told_errors:
                out += _INT32.pack(len(refusal.record_errors))
                for record_error in refusal.record_errors:
                    out += _INT32.pack(record_error.batch_index)
                    _write_string(out, record_error.message)
                _write_string(out, refusal.message)
    out += b"\0\0\0\0"  # throttle_time_ms


def _encode_flexible(
    out: bytearray, api_version: int, topics: Sequence[TopicResults], endpoints: Sequence[NodeEndpoint]
) -> None:
    out.append(0)  # no tagged fields in the response header
    write_uvarint(out, len(topics) + 1)
    for name, results in topics:
        _write_compact_string(out, name)
        write_uvarint(out, len(results) + 1)
        for result in results:
            if len(result) == 4:
                partition, base_offset, log_append_time_ms, log_start_offset = result
                # no record errors (an empty array is 1), no message (null is 0), no tagged fields
                out += _ACK_FLEXIBLE.pack(partition, 0, base_offset, log_append_time_ms, log_start_offset, 1, 0, 0)
                continue
            partition, refusal = result
            out += _ROW.pack(partition, refusal.error_code, -1, -1, refusal.log_start_offset)
            write_uvarint(out, len(refusal.record_errors) + 1)
            for record_error in refusal.record_errors:
                out += _INT32.pack(record_error.batch_index)
                _write_compact_string(out, record_error.message)
                out.append(0)
            _write_compact_string(out, refusal.message)
            if api_version >= 10 and refusal.leader_id != NO_LEADER:
                out += current_leader(0, refusal.leader_id)
            else:
                out.append(0)
        out.append(0)
    out += b"\0\0\0\0"  # throttle_time_ms
    write_endpoints(out, endpoints if api_version >= 10 else ())


def _write_string(out: bytearray, value: str | None) -> None:
    if value is None:
        out += b"\xff\xff"
        return
    encoded = value.encode()
    out += _INT16.pack(len(encoded))
    out += encoded


def _write_compact_string(out: bytearray, value: str | None) -> None:
    if value is None:
        out.append(0)
        return
    encoded = value.encode()
    write_uvarint(out, len(encoded) + 1)
    out += encoded
