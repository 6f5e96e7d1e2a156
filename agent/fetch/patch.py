"""From an extent's stored bytes to bytes a consumer can be sent: pure.

Stored batches carry base offset 0. The commit gave the extent its offsets, so the reader walks the batches
from ``Extent.base_offset`` on and writes two fields of each 61-byte v2 header: the base offset (8 bytes at 0) and the
partition leader epoch (4 bytes at 12, always 0 here). Both lie before the part that the batch's CRC covers
(``org.apache.kafka.common.record.DefaultRecordBatch``), so nothing is recomputed.

The walk also leaves an index, so that a fetch in the middle of an extent bisects instead of walking again. Small
batches are copied and patched in place. Large ones are not copied: a patched 16-byte prefix is sent in front of a
view of the stored bytes.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ingest.batch_header import HEADER_BYTES, LENGTH_OVERHEAD
from metadata.model import Extent

Piece = bytes | memoryview

LEADER_EPOCH = 0
"""Any agent serves any partition: leadership never changes, so its epoch is constant."""

ZSTD_BIT = 4
"""Of the codec bits in a batch's attributes, only zstd (4) has this one set."""

BORROW_BATCH_BYTES_MIN = 16 * 1024
"""From this size on a batch is sent from where it lies: a copy costs more than one more chunk to send."""

_HEAD = struct.Struct(">8xi4xb4xhi")  # batch length, magic, attributes, last offset delta
_PREFIX = struct.Struct(">qii")  # base offset, batch length, partition leader epoch
_LENGTH_OFFSET = LENGTH_OVERHEAD
_BATCH_LENGTH_MIN = HEADER_BYTES - _LENGTH_OFFSET
_MAGIC = 2
_ENTRY_BYTES = 16  # of the index, per batch
_PIECE_BYTES = 200  # of Python objects, per piece


class CorruptSegment(Exception):
    """Stored bytes contradict the metadata or themselves. The message names segment, position and rule."""


@dataclass(frozen=True, slots=True)
class RunSlice:
    """Whole batches of a run. ``next_offset`` follows the last record in it; ``chunks`` are borrowed from the run."""

    chunks: list[Piece]
    byte_length: int
    record_count: int
    next_offset: int


class Run:
    """An extent's batches with their offsets, ready to send, shared by all who read it. Never changes.

    ``positions`` has one entry per batch plus the end; ``last_offsets`` one per batch. ``held_bytes`` is the memory
    it adds (``borrowed`` runs refer to the buffers they were built from, which must be kept alive and counted).
    """

    __slots__ = (
        "_last_offsets",
        "_piece_starts",
        "_pieces",
        "_positions",
        "base_offset",
        "borrowed",
        "held_bytes",
        "zstd",
    )

    def __init__(
        self,
        base_offset: int,
        pieces: list[Piece],
        piece_starts: list[int],
        positions: Sequence[int],
        last_offsets: Sequence[int],
        borrowed: bool,
        zstd: bool,
        copied_bytes: int,
    ) -> None:
        self.base_offset = base_offset
        self.borrowed = borrowed
        self.zstd = zstd
        self._pieces = pieces
        self._piece_starts = piece_starts
        self._positions = array("q", positions)
        self._last_offsets = array("q", last_offsets)
        self.held_bytes = copied_bytes + _ENTRY_BYTES * len(positions) + _PIECE_BYTES * len(pieces)

    @property
    def byte_length(self) -> int:
        return self._positions[-1]

    @property
    def batch_count(self) -> int:
        return len(self._last_offsets)

    @property
    def last_offset(self) -> int:
        return self._last_offsets[-1]

    def slice(self, offset: int, byte_max: int, at_least_one: bool) -> RunSlice:
        """Whole batches from the one that holds ``offset`` on, at most ``byte_max`` bytes.

        With ``at_least_one`` the first batch comes even when it alone is larger.
        """
        assert self.base_offset <= offset <= self.last_offset, "the plan chose another run"
        positions = self._positions
        first = bisect_left(self._last_offsets, offset)
        start = positions[first]
        beyond = bisect_right(positions, start + byte_max, first) - 1
        if beyond <= first:  # below when the first batch of an earlier run took more than there was
            if not at_least_one:
                return RunSlice([], 0, 0, offset)
            beyond = first + 1
        end = positions[beyond]
        first_offset = self._last_offsets[first - 1] + 1 if first else self.base_offset
        next_offset = self._last_offsets[beyond - 1] + 1
        return RunSlice(self._chunks(start, end), end - start, next_offset - first_offset, next_offset)

    def header(self, index: int) -> bytes:
        """A copy of the ``index``-th batch's 61-byte header, patched."""
        start = self._positions[index]
        return b"".join(self._chunks(start, start + HEADER_BYTES))

    def batch(self, index: int) -> bytes:
        """A copy of the ``index``-th batch, patched."""
        return b"".join(self._chunks(self._positions[index], self._positions[index + 1]))

    def _chunks(self, start: int, end: int) -> list[Piece]:
        starts = self._piece_starts
        index = bisect_right(starts, start) - 1
        chunks: list[Piece] = []
        while start < end:
            piece = self._pieces[index]
            piece_start = starts[index]
            piece_end = piece_start + len(piece)
            if start == piece_start and piece_end <= end:
                chunks.append(piece)
            else:
                chunks.append(memoryview(piece)[start - piece_start : end - piece_start])
            start = piece_end
            index += 1
        return chunks


class RunBuilder:
    """Walks an extent's batches, ``advance`` by ``advance``, so that a driver may let others run in between.

    ``sources`` are the extent's bytes, back to back. They are only read.

    :raises CorruptSegment: from the constructor and from ``advance``.
    """

    def __init__(self, extent: Extent, sources: Sequence[memoryview]) -> None:
        self._extent = extent
        self._end = sum(map(len, sources))
        if self._end != extent.byte_length or not sources:
            raise self._corrupt(
                self._end, f"the object ends after {self._end} of the extent's {extent.byte_length} bytes"
            )
        self._position = 0
        self._offset = extent.base_offset
        self._positions: list[int] = []
        self._last_offsets: list[int] = []
        self._attributes = 0
        self._copied = 0
        self._sources = sources
        self._payload = bytearray()
        self._pieces: list[Piece] = []
        self._small = bytearray()
        self._source_index = 0
        self._source_start = 0
        head = bytes(sources[0][:12]) if len(sources[0]) >= 12 else b"".join(sources)[:12]
        self._borrows = int.from_bytes(head[8:12], "big", signed=True) >= BORROW_BATCH_BYTES_MIN
        if not self._borrows:
            self._payload = bytearray().join(sources)
            self._copied = self._end

    def advance(self, batches_max: int) -> bool:
        """Patch up to ``batches_max`` more batches; True when none is left."""
        try:
            if self._borrows:
                self._walk_borrowing(batches_max)
            else:
                self._walk_copying(batches_max)
        except struct.error:
            raise self._corrupt(self._position, "the extent ends inside a batch header") from None
        return self._position == self._end

    def finish(self) -> Run:
        """The run; once, after :meth:`advance` returned True.

        :raises CorruptSegment: the batches hold more or fewer records than the metadata says.
        """
        assert self._position == self._end, "advance() has not seen the end"
        extent = self._extent
        if self._offset != extent.last_offset + 1:
            raise self._corrupt(
                self._end,
                f"its batches end at offset {self._offset - 1}, the metadata says {extent.last_offset}",
            )
        if self._borrows:
            self._flush_small()
            pieces = self._pieces
        else:
            pieces = [memoryview(self._payload).toreadonly()]
        starts: list[int] = []
        position = 0
        for piece in pieces:
            starts.append(position)
            position += len(piece)
        assert position == self._end
        return Run(
            extent.base_offset,
            pieces,
            starts,
            [*self._positions, self._end],
            self._last_offsets,
            self._borrows,
            bool(self._attributes & ZSTD_BIT),
            self._copied,
        )

    def _walk_copying(self, batches_max: int) -> None:
        payload, end = self._payload, self._end
        position, offset, seen = self._position, self._offset, self._attributes
        unpack, pack = _HEAD.unpack_from, _PREFIX.pack_into
        add_position, add_last_offset = self._positions.append, self._last_offsets.append
        try:
            for _ in range(batches_max):
                length, magic, attributes, delta = unpack(payload, position)
                following = position + length + _LENGTH_OFFSET
                if length < _BATCH_LENGTH_MIN or following > end or magic != _MAGIC or delta < 0:
                    raise self._bad_batch(position, length, magic, delta)
                pack(payload, position, offset, length, LEADER_EPOCH)
                add_position(position)
                offset += delta
                add_last_offset(offset)
                offset += 1
                seen |= attributes
                position = following
                if position == end:
                    break
        finally:
            self._position, self._offset, self._attributes = position, offset, seen

    def _walk_borrowing(self, batches_max: int) -> None:
        end = self._end
        while batches_max > 0 and self._position < end:
            position = self._position
            view, begin = self._source_at(position)
            if begin + _HEAD.size > len(view):
                view, begin = memoryview(b"".join(self._read(position, min(_HEAD.size, end - position)))), 0
            length, magic, attributes, delta = _HEAD.unpack_from(view, begin)
            following = position + length + _LENGTH_OFFSET
            if length < _BATCH_LENGTH_MIN or following > end or magic != _MAGIC or delta < 0:
                raise self._bad_batch(position, length, magic, delta)
            prefix = _PREFIX.pack(self._offset, length, LEADER_EPOCH)
            body = self._read(position + _PREFIX.size, length + _LENGTH_OFFSET - _PREFIX.size)
            if length < BORROW_BATCH_BYTES_MIN:
                self._small += prefix
                for part in body:
                    self._small += part
            else:
                if self._small:
                    self._flush_small()
                self._pieces.append(prefix)
                self._pieces += body
                self._copied += _PREFIX.size
            self._positions.append(position)
            self._offset += delta
            self._last_offsets.append(self._offset)
            self._offset += 1
            self._attributes |= attributes
            self._position = following
            batches_max -= 1

    def _source_at(self, position: int) -> tuple[memoryview, int]:
        """The source that ``position`` lies in, and where in it. Only forwards."""
        view = self._sources[self._source_index]
        while position >= self._source_start + len(view):
            self._source_start += len(view)
            self._source_index += 1
            view = self._sources[self._source_index]
        return view, position - self._source_start

    def _read(self, position: int, length: int) -> list[memoryview]:
        """Views of ``length`` bytes from ``position`` on."""
        view, begin = self._source_at(position)
        views = [view[begin : begin + length]]
        length -= len(views[0])
        index = self._source_index
        while length > 0:
            index += 1
            views.append(self._sources[index][:length])
            length -= len(views[-1])
        return views

    def _flush_small(self) -> None:
        if self._small:
            self._pieces.append(memoryview(self._small).toreadonly())
            self._copied += len(self._small)
            self._small = bytearray()

    def _bad_batch(self, position: int, length: int, magic: int, delta: int) -> CorruptSegment:
        if length < _BATCH_LENGTH_MIN or position + length + _LENGTH_OFFSET > self._end:
            return self._corrupt(position, f"batch length {length} does not fit the extent")
        if magic != _MAGIC:
            return self._corrupt(position, f"magic {magic} instead of {_MAGIC}")
        return self._corrupt(position, f"last offset delta {delta} is negative")

    def _corrupt(self, position: int, rule: str) -> CorruptSegment:
        extent = self._extent
        return CorruptSegment(f"segment {extent.segment_key} at byte {extent.byte_position + position}: {rule}")
