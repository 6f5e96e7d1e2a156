"""Runs of placed extents: compaction has written offsets into their batches, which are sent as they lie there. Pure.

The walk only leaves the index, and believes nothing: offsets must rise, stay within the extent and end with it. Between
batches offsets may be missing (compacted topics); a fetch from there gets the next batch, as from a Kafka broker.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from agent.fetch.patch import ZSTD_BIT, CorruptSegment, Piece, Run, RunBuilder
from ingest.batch_header import HEADER_BYTES, LENGTH_OVERHEAD
from metadata.model import Extent

EXACT_BYTES_MIN = 1 << 20
"""Placed extents from this size on are read by one GET of exactly their bytes; smaller ones share blocks."""

_HEAD = struct.Struct(">qi4xb4xhi")  # base offset, batch length, magic, attributes, last offset delta
_BATCH_LENGTH_MIN = HEADER_BYTES - LENGTH_OVERHEAD
_MAGIC = 2


def reads_exactly(extent: Extent) -> bool:
    """Whether the extent's bytes are worth a GET of their own."""
    return extent.level > 0 and extent.byte_length >= EXACT_BYTES_MIN


def run_builder(extent: Extent, sources: Sequence[memoryview]) -> RunBuilder | PlacedRunBuilder:
    """What makes a run of ``extent``.

    :raises CorruptSegment: there are more or fewer bytes than the extent has.
    """
    return PlacedRunBuilder(extent, sources) if extent.level > 0 else RunBuilder(extent, sources)


class PlacedRunBuilder:
    """As :class:`agent.fetch.patch.RunBuilder`. Large extents that lie in one buffer are borrowed, others copied."""

    def __init__(self, extent: Extent, sources: Sequence[memoryview]) -> None:
        self._extent = extent
        self._end = sum(map(len, sources))
        if self._end != extent.byte_length or not sources:
            raise self._corrupt(
                self._end, f"the object ends after {self._end} of the extent's {extent.byte_length} bytes"
            )
        self._borrows = len(sources) == 1 and reads_exactly(extent)
        self._payload = sources[0] if self._borrows else memoryview(b"".join(sources))
        self._position = 0
        self._next_offset = extent.base_offset
        self._positions: list[int] = []
        self._last_offsets: list[int] = []
        self._attributes = 0

    def advance(self, batches_max: int) -> bool:
        """Look at up to ``batches_max`` more batches; True when none is left.

        :raises CorruptSegment:
        """
        payload, end = self._payload, self._end
        try:
            while batches_max > 0 and self._position < end:
                batches_max -= 1
                position = self._position
                base_offset, length, magic, attributes, delta = _HEAD.unpack_from(payload, position)
                following = position + length + LENGTH_OVERHEAD
                if length < _BATCH_LENGTH_MIN or following > end or magic != _MAGIC or delta < 0:
                    raise self._corrupt(position, f"no batch: length {length}, magic {magic}, delta {delta}")
                if base_offset < self._next_offset or base_offset + delta > self._extent.last_offset:
                    raise self._corrupt(position, f"base offset {base_offset}, {self._next_offset} or more is next")
                self._positions.append(position)
                self._last_offsets.append(base_offset + delta)
                self._next_offset = base_offset + delta + 1
                self._attributes |= attributes
                self._position = following
        except struct.error:
            raise self._corrupt(self._position, "the extent ends inside a batch header") from None
        return self._position == end

    def finish(self) -> Run:
        """The run; once, after :meth:`advance` returned True.

        :raises CorruptSegment: its last batch does not end where the metadata says.
        """
        assert self._position == self._end, "advance() has not seen the end"
        if self._next_offset != self._extent.last_offset + 1:
            raise self._corrupt(
                self._end,
                f"its batches end at offset {self._next_offset - 1}, the metadata says {self._extent.last_offset}",
            )
        pieces: list[Piece] = [self._payload]
        return Run(
            self._extent.base_offset,
            pieces,
            [0],
            [*self._positions, self._end],
            self._last_offsets,
            self._borrows,
            bool(self._attributes & ZSTD_BIT),
            0 if self._borrows else self._end,
        )

    def _corrupt(self, position: int, rule: str) -> CorruptSegment:
        extent = self._extent
        return CorruptSegment(f"segment {extent.segment_key} at byte {extent.byte_position + position}: {rule}")
