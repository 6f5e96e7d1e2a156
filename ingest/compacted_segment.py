"""Version 2 of the segment format (docs/rfcs/0007-compaction.md): batches carry their offsets, extents are *placed*.

As version 1, record batches, a footer and a trailer. A partition may have several extents, in the order of their
offsets. The footer does not list batches, since nothing is committed from it; it says of each extent what the metadata
says. Between batches offsets may be missing, and batches may be empty (compacted topics); the last batch of an extent
ends at the extent's last offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import crc32c
import msgspec

from ingest.batch_header import CHECKED_FROM, HEADER_BYTES, BatchHeader, MalformedRecords
from ingest.segment_ending import SegmentCorrupt, pack_ending
from metadata.model import TopicId
from storage.store import Chunk

VERSION = 2

_MAGIC = 2
_encode = msgspec.msgpack.Encoder().encode


class CompactedExtent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One placed extent. ``crc32c`` is of the object's bytes from 0 to its end."""

    topic_id: TopicId
    partition: int
    byte_position: int
    byte_length: int
    crc32c: int
    base_offset: int
    last_offset: int
    batch_count: int
    max_timestamp_ms: int
    commit_ms: int


class CompactedFooter(msgspec.Struct, frozen=True, array_like=True):
    """Who wrote the segment, when, and what is in it (extents back to back from byte 0)."""

    agent_epoch: int
    sequence: int
    sealed_ms: int
    level: int
    extents: tuple[CompactedExtent, ...]


class PlacedExtent:
    """An extent on its way into a compacted segment: whole batches, with their offsets, in ``chunks``."""

    __slots__ = (
        "base_offset",
        "batch_count",
        "byte_length",
        "chunks",
        "commit_ms",
        "last_offset",
        "max_timestamp_ms",
        "partition",
        "topic_id",
    )

    def __init__(self, topic_id: TopicId, partition: int, base_offset: int) -> None:
        self.topic_id = topic_id
        self.partition = partition
        self.base_offset = base_offset
        self.last_offset = base_offset - 1
        self.byte_length = 0
        self.batch_count = 0
        self.max_timestamp_ms = -1
        self.commit_ms = 0
        self.chunks: list[Chunk] = []


@dataclass(frozen=True, slots=True)
class EncodedCompactedSegment:
    """An object ready to be put; ``extents`` in the order they were given."""

    chunks: list[Chunk]
    byte_length: int
    crc32c: int
    extents: tuple[CompactedExtent, ...]


def encode_compacted_segment(
    agent_epoch: int, sequence: int, sealed_ms: int, level: int, extents: Sequence[PlacedExtent]
) -> EncodedCompactedSegment:
    """Lay out ``extents`` (by topic, partition and offset) one after the other. Their chunks are borrowed."""
    chunks: list[Chunk] = []
    rows: list[CompactedExtent] = []
    position = checksum = 0
    for extent in extents:
        for chunk in extent.chunks:
            checksum = crc32c.crc32c(chunk, checksum)
        chunks += extent.chunks
        rows.append(
            CompactedExtent(
                extent.topic_id,
                extent.partition,
                position,
                extent.byte_length,
                checksum,
                extent.base_offset,
                extent.last_offset,
                extent.batch_count,
                extent.max_timestamp_ms,
                extent.commit_ms,
            )
        )
        position += extent.byte_length
    footer = CompactedFooter(agent_epoch, sequence, sealed_ms, level, tuple(rows))
    ending = pack_ending(_encode(footer), VERSION)
    chunks.append(ending)
    return EncodedCompactedSegment(chunks, position + len(ending), crc32c.crc32c(ending, checksum), footer.extents)


def decode_compacted_footer(plain: bytes, data_byte_length: int) -> CompactedFooter:
    """From the footer's MessagePack. Checked: that its extents cover the data exactly, in order of their offsets.

    :raises SegmentCorrupt:
    """
    try:
        footer = msgspec.msgpack.decode(plain, type=CompactedFooter)
    except msgspec.MsgspecError as error:
        raise SegmentCorrupt(f"the footer cannot be read: {error}") from None
    position = 0
    next_offsets: dict[tuple[TopicId, int], int] = {}
    for extent in footer.extents:
        partition = (extent.topic_id, extent.partition)
        if extent.byte_position != position or len(extent.topic_id) != 16 or extent.batch_count < 1:
            raise SegmentCorrupt(f"footer row of partition {extent.partition} at byte {extent.byte_position}")
        if extent.byte_length < HEADER_BYTES * extent.batch_count or extent.last_offset < extent.base_offset:
            raise SegmentCorrupt(f"footer row of partition {extent.partition}: impossible batches")
        if extent.base_offset < next_offsets.get(partition, 0):
            raise SegmentCorrupt(f"footer row of partition {extent.partition}: offset {extent.base_offset} comes late")
        next_offsets[partition] = extent.last_offset + 1
        position += extent.byte_length
    if position != data_byte_length:
        raise SegmentCorrupt(f"the footer describes {position} bytes, the object has {data_byte_length}")
    return footer


def check_compacted_extents(view: memoryview, footer: CompactedFooter) -> None:
    """Every extent's checksum, every batch's header, offsets and CRC32C.

    :raises SegmentCorrupt: naming the first extent and batch that differ.
    """
    checksum = 0
    for extent in footer.extents:
        position = extent.byte_position
        where = f"partition {extent.partition} of topic {extent.topic_id.hex()} at byte {position}"
        data = view[position : position + extent.byte_length]
        checksum = crc32c.crc32c(data, checksum)
        if checksum != extent.crc32c:
            raise SegmentCorrupt(f"{where}: the checksum does not match")
        _check_batches(data, extent, where)


def _check_batches(data: memoryview, extent: CompactedExtent, where: str) -> None:
    position = count = 0
    next_offset = extent.base_offset
    while position < len(data):
        try:
            header = BatchHeader.parse(data, position)
        except MalformedRecords as error:
            raise SegmentCorrupt(f"{where}: {error}") from None
        end = position + header.byte_length
        if header.byte_length < HEADER_BYTES or end > len(data) or header.magic != _MAGIC:
            raise SegmentCorrupt(f"{where}: no batch {position} bytes into it")
        if header.base_offset < next_offset or header.last_offset_delta < 0:
            raise SegmentCorrupt(f"{where}: base offset {header.base_offset} instead of {next_offset} or later")
        if crc32c.crc32c(data[position + CHECKED_FROM : end]) != header.crc:
            raise SegmentCorrupt(f"{where}: CRC32C of the batch {position} bytes into it does not match")
        next_offset = header.base_offset + header.last_offset_delta + 1
        position = end
        count += 1
    if count != extent.batch_count or next_offset != extent.last_offset + 1:
        raise SegmentCorrupt(
            f"{where}: {count} batches to offset {next_offset - 1}, the footer says {extent.batch_count}"
            f" to {extent.last_offset}"
        )
