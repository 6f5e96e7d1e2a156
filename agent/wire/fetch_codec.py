"""The body of a Fetch response, versions 4 to 16, as pieces ready to send.

By hand, because kio's writer copies and takes about 4 µs a partition: here records stay where they lie and
everything between them is packed into as few small buffers as possible. Tests compare it with kio's byte for byte.
Source: ``FetchResponse.json``; KIP-219 (throttle), KIP-227 (sessions: always 0, none is kept), KIP-482 (flexible from
12), KIP-516 (topic ids from 13), KIP-951 (from 16 on refused partitions name their leader).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agent.wire.endpoints import NO_LEADER, NodeEndpoint, current_leader, write_endpoints

FLEXIBLE_SINCE = 12
TOPIC_ID_SINCE = 13
NO_TOPIC_ID = bytes(16)
LEADERS_SINCE = 16
SESSION_SINCE = 7
COPY_BELOW_BYTES = 2_048
"""Records smaller than this are copied between the fields around them: cheaper than one more piece to send."""

Chunk = bytes | memoryview


class PartitionRow(NamedTuple):
    """One partition of the answer. Last stable offset is the high watermark: there are no transactions."""

    partition: int
    error_code: int
    high_watermark: int
    log_start_offset: int
    chunks: Sequence[Chunk]
    byte_length: int
    leader_id: int = NO_LEADER
    """Where to go instead; told from version 16 on."""


_V4 = struct.Struct(">ihqqii").pack  # partition, error, high watermark, last stable, aborted count, records length
_V5 = struct.Struct(">ihqqqii").pack  # + log start offset
_V11 = struct.Struct(">ihqqqiii").pack  # + preferred read replica
_V12 = struct.Struct(">ihqqqBi").pack  # aborted count as uvarint; the records' length follows
_INT = struct.Struct(">i").pack
_SHORT = struct.Struct(">h").pack
_TOP = struct.Struct(">ihi").pack
_NO_REPLICA = -1


def encode_fetch_response(
    version: int,
    topics: Sequence[tuple[str | bytes, Sequence[PartitionRow]]],
    read_committed: bool = False,
    error_code: int = 0,
    endpoints: Sequence[NodeEndpoint] = (),
) -> tuple[list[bytes | memoryview], int, int]:
    """``topics`` by name, or by 16-byte id from version 13 on; ``endpoints``: of the leaders that rows name.

    :return: the pieces, their sum in bytes, and how many of these are new (the rest is borrowed from the rows).
    """
    pieces: list[bytes | memoryview] = []
    head = bytearray()
    flexible = version >= FLEXIBLE_SINCE
    head += _TOP(0, error_code, 0) if version >= SESSION_SINCE else _INT(0)
    head += _uvarint(len(topics) + 1) if flexible else _INT(len(topics))
    write = _partition_writer(version, read_committed)
    borrowed = 0
    own = 0
    for topic, rows in topics:
        if version >= TOPIC_ID_SINCE:
            assert isinstance(topic, bytes) and len(topic) == 16
            head += topic
        else:
            assert isinstance(topic, str)
            name = topic.encode()
            head += _uvarint(len(name) + 1) if flexible else _SHORT(len(name))
            head += name
        head += _uvarint(len(rows) + 1) if flexible else _INT(len(rows))
        for row in rows:
            head += write(row)
            if row.byte_length >= COPY_BELOW_BYTES:
                own += len(head)
                pieces.append(bytes(head))
                pieces.extend(row.chunks)
                borrowed += row.byte_length
                head.clear()
            else:
                for chunk in row.chunks:
                    head += chunk
            if flexible:
                if row.leader_id != NO_LEADER and version >= LEADERS_SINCE:
                    head += current_leader(1, row.leader_id)
                else:
                    head.append(0)
        if flexible:
            head.append(0)
    if flexible:
        write_endpoints(head, endpoints if version >= LEADERS_SINCE else ())
    own += len(head)
    pieces.append(bytes(head))
    return pieces, own + borrowed, own


def _partition_writer(version: int, read_committed: bool) -> Callable[[PartitionRow], bytes]:
    """Everything of a partition before its records. A null list of aborted transactions means "not asked for"."""
    aborted = 0 if read_committed else -1

    def v4(row: PartitionRow) -> bytes:
        return _V4(row[0], row[1], row[2], row[2], aborted, row[5])

    def v5(row: PartitionRow) -> bytes:
        return _V5(row[0], row[1], row[2], row[2], row[3], aborted, row[5])

    def v11(row: PartitionRow) -> bytes:
        return _V11(row[0], row[1], row[2], row[2], row[3], aborted, _NO_REPLICA, row[5])

    def v12(row: PartitionRow) -> bytes:
        fixed = _V12(row[0], row[1], row[2], row[2], row[3], aborted + 1, _NO_REPLICA)
        return fixed + _uvarint(row[5] + 1)

    if version >= FLEXIBLE_SINCE:
        return v12
    if version >= 11:
        return v11
    return v5 if version >= 5 else v4


def _uvarint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
