"""The segment format (docs/rfcs/0001-segment-format.md): record batches, a footer that explains them, a trailer.

::

    batches of partition A | batches of partition B | ... | footer (zstd of MessagePack) | trailer (24 bytes)

Encoding copies only small batches (into larger pieces, so that neither the store nor the cache handles thousands of
tiny ones); large ones stay where they were received. The checksum in a run's footer row is that of the *whole object
up to the run's end*, so the last one, continued over footer and trailer, is the object's: nothing is checksummed twice,
and large batches not at all, since theirs follows from the CRC32C they came with.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import crc32c
import msgspec

from ingest.batch_header import CHECKED_FROM, CRC_POSITION, HEADER_BYTES, BatchHeader, MalformedRecords
from ingest.checksum import combine
from ingest.compacted_segment import CompactedFooter, check_compacted_extents, decode_compacted_footer
from ingest.segment_ending import SegmentCorrupt, pack_ending, unpack_ending
from metadata.model import BatchDraft, ExtentDraft, TopicId
from storage.store import Chunk

FORMAT_VERSION = 1
SEGMENT_PREFIX = "segments/"
"""Every segment's key starts so."""
SHARDS = 16
"""Key prefixes that segments are spread over; S3 serves 3,500 PUTs a second on each."""
_SMALL_BYTES = 32 << 10
"""Batches below this are copied together; at this size copying costs about what handling a separate chunk does (3 µs:
laying it out, its checksum over bytes that have left the processor's caches, the store's copy, the tail's views)."""
_PIECE_BYTES = 1 << 20
_COMBINED_BYTES_MIN = 256 << 10
"""From this size on a batch's checksum is derived from its own instead of read from its bytes."""
_CRC = struct.Struct(">I")


class FooterExtent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One partition's run of batches. ``crc32c`` is of the object's bytes from 0 to this run's end."""

    topic_id: TopicId
    partition: int
    byte_position: int
    byte_length: int
    crc32c: int
    batches: tuple[BatchDraft, ...]


class SegmentFooter(msgspec.Struct, frozen=True, array_like=True):
    """Who wrote the segment, when, and what is in it (runs back to back from byte 0)."""

    agent_epoch: int
    sequence: int
    sealed_ms: int
    extents: tuple[FooterExtent, ...]


class PartitionRun:
    """Batches of one partition on their way into a segment: ``payloads[i]`` is described by ``batches[i]``."""

    __slots__ = ("batches", "partition", "payloads", "topic_id")

    def __init__(self, topic_id: TopicId, partition: int) -> None:
        self.topic_id = topic_id
        self.partition = partition
        self.payloads: list[Chunk] = []
        self.batches: list[BatchDraft] = []


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """An object ready to be put. ``data`` is every batch, by byte position; ``ending`` is footer and trailer."""

    data: list[tuple[int, Chunk]]
    ending: bytes
    byte_length: int
    crc32c: int
    extents: tuple[ExtentDraft, ...]
    copied_bytes: int

    def chunks(self) -> list[Chunk]:
        """The whole object."""
        return [*(chunk for _, chunk in self.data), self.ending]


def encode_segment(agent_epoch: int, sequence: int, sealed_ms: int, runs: Sequence[PartitionRun]) -> EncodedSegment:
    """Lay out ``runs`` one after the other. Large payloads are borrowed: they must not change from now on.

    Every payload is a whole batch whose own CRC32C has been verified: the object's checksum relies on it.

    :raises ValueError: a run has no batches.
    """
    layout = _Layout()
    positions = [0]
    for run in runs:
        layout.add(run.payloads)
        positions.append(layout.byte_length)
    layout.join_small()
    checksums, checksum = _running_checksums(layout, positions[1:])
    if len(checksums) != len(runs) or not all(run.batches for run in runs):
        raise ValueError("a run without batches")
    drafts = []
    rows = []
    for run, start, end, run_checksum in zip(runs, positions, positions[1:], checksums, strict=False):
        batches = tuple(run.batches)
        drafts.append(ExtentDraft(run.topic_id, run.partition, start, batches))
        rows.append(FooterExtent(run.topic_id, run.partition, start, end - start, run_checksum, batches))
    footer = SegmentFooter(agent_epoch, sequence, sealed_ms, tuple(rows))
    ending = pack_ending(msgspec.msgpack.encode(footer), FORMAT_VERSION)
    return EncodedSegment(
        layout.data,
        ending,
        layout.byte_length + len(ending),
        crc32c.crc32c(ending, checksum),
        tuple(drafts),
        layout.copied_bytes,
    )


class _Layout:
    """Where each payload goes, small ones joined."""

    def __init__(self) -> None:
        self.data: list[tuple[int, Chunk]] = []
        self.single: list[bool] = []
        """Whether each of ``data`` is one batch, rather than many joined."""
        self.byte_length = 0
        self.copied_bytes = 0
        self._small: list[Chunk] = []
        self._small_start = 0

    def add(self, payloads: list[Chunk]) -> None:
        total = sum(map(len, payloads))
        if total < _SMALL_BYTES * len(payloads):
            self._small += payloads
            self.byte_length += total
            if self.byte_length - self._small_start >= _PIECE_BYTES:
                self.join_small()
            return
        self.join_small()
        for payload in payloads:
            self.data.append((self.byte_length, payload))
            self.single.append(True)
            self.byte_length += len(payload)
        self._small_start = self.byte_length

    def join_small(self) -> None:
        if self._small:
            joined = b"".join(self._small)
            self.data.append((self._small_start, joined))
            self.single.append(False)
            self.copied_bytes += len(joined)
            self._small.clear()
        self._small_start = self.byte_length


def _running_checksums(layout: _Layout, ends: Sequence[int]) -> tuple[list[int], int]:
    """The CRC32C from byte 0 to each of ``ends`` (ascending), and to the end of the data."""
    checksum = 0
    checksums: list[int] = []
    for (position, chunk), single in zip(layout.data, layout.single, strict=True):
        view = memoryview(chunk)
        done = 0
        if single and len(view) >= _COMBINED_BYTES_MIN:
            (own,) = _CRC.unpack_from(view, CRC_POSITION)
            checksum = combine(crc32c.crc32c(view[:CHECKED_FROM], checksum), own, len(view) - CHECKED_FROM)
            done = len(view)
        while len(checksums) < len(ends) and ends[len(checksums)] <= position + len(view):
            cut = ends[len(checksums)] - position
            checksum = crc32c.crc32c(view[done:cut], checksum)
            checksums.append(checksum)
            done = cut
        if done < len(view):
            checksum = crc32c.crc32c(view[done:], checksum)
    return checksums, checksum


# --- reading ----------------------------------------------------------------------------------------------


def decode_footer(tail: Chunk, object_byte_length: int) -> SegmentFooter | CompactedFooter:
    """The footer, from the end of an object of ``object_byte_length`` bytes: at least ``ending_byte_length`` of it.

    Checked: its checksum, its types, and that the rows cover the object's data exactly, batch by batch.

    :raises SegmentCorrupt:
    """
    version, plain, data_byte_length = unpack_ending(tail, object_byte_length)
    if version != FORMAT_VERSION:
        return decode_compacted_footer(plain, data_byte_length)
    try:
        footer = msgspec.msgpack.decode(plain, type=SegmentFooter)
    except msgspec.MsgspecError as error:
        raise SegmentCorrupt(f"the footer cannot be read: {error}") from None
    _check_layout(footer, data_byte_length)
    return footer


def check_segment(data: Chunk) -> SegmentFooter | CompactedFooter:
    """Read a whole object and believe nothing: footer, every run's checksum, every batch's header and CRC32C.

    :raises SegmentCorrupt: naming the first run and batch that differ.
    """
    footer = decode_footer(data, len(data))
    view = memoryview(data)
    if isinstance(footer, CompactedFooter):
        check_compacted_extents(view, footer)
        return footer
    checksum = 0
    for extent in footer.extents:
        position = extent.byte_position
        where = f"partition {extent.partition} of topic {extent.topic_id.hex()} at byte {position}"
        checksum = crc32c.crc32c(view[position : position + extent.byte_length], checksum)
        if checksum != extent.crc32c:
            raise SegmentCorrupt(f"{where}: the checksum does not match")
        for batch in extent.batches:
            _check_batch(view[position : position + batch.byte_length], batch, f"{where}, batch at byte {position}")
            position += batch.byte_length
    return footer


def _check_layout(footer: SegmentFooter, data_byte_length: int) -> None:
    position = 0
    seen = set()
    for extent in footer.extents:
        partition = (extent.topic_id, extent.partition)
        if extent.byte_position != position or partition in seen or len(extent.topic_id) != 16:
            raise SegmentCorrupt(f"footer row of partition {extent.partition} at byte {extent.byte_position}")
        if any(batch.byte_length < HEADER_BYTES or batch.record_count < 1 for batch in extent.batches):
            raise SegmentCorrupt(f"footer row of partition {extent.partition}: impossible batch")
        if not extent.batches or sum(batch.byte_length for batch in extent.batches) != extent.byte_length:
            raise SegmentCorrupt(f"footer row of partition {extent.partition}: batches do not fill it")
        position += extent.byte_length
        seen.add(partition)
    if position != data_byte_length:
        raise SegmentCorrupt(f"the footer describes {position} bytes, the object has {data_byte_length}")


def _check_batch(payload: memoryview, batch: BatchDraft, where: str) -> None:
    try:
        header = BatchHeader.parse(payload)
    except MalformedRecords as error:
        raise SegmentCorrupt(f"{where}: {error}") from None
    described = header.draft()
    if described != batch:
        raise SegmentCorrupt(f"{where}: the footer says {batch}, the batch {described}")
    if crc32c.crc32c(payload[CHECKED_FROM:]) != header.crc:
        raise SegmentCorrupt(f"{where}: the batch's own CRC32C does not match")


# --- keys -------------------------------------------------------------------------------------------------


class SegmentName(msgspec.Struct, frozen=True):
    """What a segment's key says. ``attempt`` tells apart the objects one segment was put to (hedges, retries);
    ``writer`` is drawn once per process, so that no two writers can ever meet at one key."""

    agent_epoch: int
    sequence: int
    attempt: int
    writer: int

    @property
    def key(self) -> str:
        name = f"{self.agent_epoch:010d}-{self.sequence:012d}-{self.attempt:02d}-{self.writer:08x}"
        return f"{SEGMENT_PREFIX}{crc32c.crc32c(name.encode()) % SHARDS:x}/{name}"


def parse_segment_key(key: str) -> SegmentName:
    """:raises ValueError: not a key that :attr:`SegmentName.key` makes."""
    try:
        epoch, sequence, attempt, writer = key.removeprefix(SEGMENT_PREFIX)[2:].split("-")
        name = SegmentName(int(epoch), int(sequence), int(attempt), int(writer, 16))
    except ValueError:
        raise ValueError(f"not a segment's key: {key!r}") from None
    if name.key != key:
        raise ValueError(f"not a segment's key: {key!r}")
    return name
