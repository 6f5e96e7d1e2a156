"""Writing the offsets into an extent's batches, and checking every one of them on the way. Pure.

Base offset and partition leader epoch lie before what a batch's CRC32C covers
(``org.apache.kafka.common.record.DefaultRecordBatch``), so nothing else changes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import crc32c

from ingest.batch_header import CHECKED_FROM, HEADER_BYTES, LENGTH_OVERHEAD
from ingest.segment_ending import SegmentCorrupt
from metadata.model import Extent
from storage.store import Chunk

BATCHES_AT_ONCE = 1_000
"""Looked at between two turns of the event loop: about two milliseconds."""
LEADER_EPOCH = 0
"""As readers of extents that are not placed write it (``agent.fetch.patch``)."""

_BORROW_BYTES_MIN = 16 << 10
"""Batches from this size on are not copied: a new head goes in front of the rest."""
_HEAD = struct.Struct(">qiibIhi")  # base offset, batch length, leader epoch, magic, CRC, attributes, last offset delta
_PREFIX = struct.Struct(">qii")
_MAGIC = 2


class Placer:
    """Takes one extent's bytes; ``chunks`` are the same batches with their offsets, ``batch_count`` their number.

    ``data`` is borrowed where its batches are large, or have their offsets already.
    """

    def __init__(self, extent: Extent, data: memoryview) -> None:
        self.chunks: list[Chunk] = []
        self.batch_count = 0
        self._extent = extent
        self._data = data

    def steps(self) -> Iterator[None]:
        """Do it, with a pause after every :data:`BATCHES_AT_ONCE` batches.

        :raises SegmentCorrupt: the bytes contradict themselves or the metadata; the message names segment and byte.
        """
        extent, data = self._extent, self._data
        end = len(data)
        if end != extent.byte_length:
            raise self._corrupt(end, f"the object ends after {end} of the extent's {extent.byte_length} bytes")
        placed = extent.level > 0
        copies = not placed and end >= HEADER_BYTES and _HEAD.unpack_from(data)[1] < _BORROW_BYTES_MIN
        target: Chunk = bytearray(data) if copies else data
        position, next_offset = 0, extent.base_offset
        while position < end:
            try:
                base, length, _, magic, crc, _, delta = _HEAD.unpack_from(data, position)
            except struct.error:
                raise self._corrupt(position, "the extent ends inside a batch header") from None
            following = position + length + LENGTH_OVERHEAD
            if length < HEADER_BYTES - LENGTH_OVERHEAD or following > end or magic != _MAGIC or delta < 0:
                raise self._corrupt(position, f"no batch: length {length}, magic {magic}, delta {delta}")
            if crc32c.crc32c(data[position + CHECKED_FROM : following]) != crc:
                raise self._corrupt(position, "the batch's CRC32C does not match")
            if placed:
                if base < next_offset:
                    raise self._corrupt(position, f"base offset {base}, {next_offset} or more is next")
                next_offset = base
            elif copies:
                _PREFIX.pack_into(target, position, next_offset, length, LEADER_EPOCH)
            else:
                self.chunks.append(_PREFIX.pack(next_offset, length, LEADER_EPOCH))
                self.chunks.append(data[position + _PREFIX.size : following])
            next_offset += delta + 1
            position = following
            self.batch_count += 1
            if self.batch_count % BATCHES_AT_ONCE == 0:
                yield
        if next_offset != extent.last_offset + 1:
            raise self._corrupt(end, f"its batches end at {next_offset - 1}, the metadata says {extent.last_offset}")
        if placed or copies:
            self.chunks.append(target)

    def _corrupt(self, position: int, rule: str) -> SegmentCorrupt:
        extent = self._extent
        return SegmentCorrupt(f"segment {extent.segment_key} at byte {extent.byte_position + position}: {rule}")
