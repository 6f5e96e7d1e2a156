"""What a compaction job writes, and what it reads for it. Pure.

From the extents of a job to the extents they become (neighbours in offsets, joined up to a size), to the segments these
fill, in the order of topic, partition and offset; and for each segment the ranges of objects that hold its bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metadata.model import Extent

GAP_BYTES_MAX = 128 << 10
"""Bytes between two wanted extents that are read and thrown away rather than spending another GET."""
RANGE_BYTES_MAX = 16 << 20
"""Of one GET, unless a single extent is larger."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Extents of one partition that touch, in order: they become one."""

    extents: tuple[Extent, ...]
    byte_length: int

    @property
    def base_offset(self) -> int:
        return self.extents[0].base_offset

    @property
    def last_offset(self) -> int:
        return self.extents[-1].last_offset


@dataclass(frozen=True, slots=True)
class ReadRange:
    """One GET and the extents that lie in it, by position."""

    segment_key: str
    start: int
    length: int
    extents: tuple[Extent, ...]


def join_extents(extents: Iterable[Extent], byte_max: int) -> list[Joined]:
    """What ``extents`` become, by topic, partition and offset; each at most ``byte_max`` long, but for single ones."""
    joined: list[Joined] = []
    run: list[Extent] = []
    byte_length = 0
    for extent in sorted(extents, key=lambda each: (each.topic_id, each.partition, each.base_offset)):
        if run and (not _touch(run[-1], extent) or byte_length + extent.byte_length > byte_max):
            joined.append(Joined(tuple(run), byte_length))
            run, byte_length = [], 0
        run.append(extent)
        byte_length += extent.byte_length
    if run:
        joined.append(Joined(tuple(run), byte_length))
    return joined


def fill_segments(joined: Sequence[Joined], byte_max: int) -> list[list[Joined]]:
    """Neighbours that go into one segment, about as much in each: up to a quarter more than ``byte_max``, rather than
    a small segment at the end; more only where a single extent has it."""
    total = sum(each.byte_length for each in joined)
    share = total / max(1, math.ceil(total / byte_max - 0.25))
    segments: list[list[Joined]] = []
    filled = 0
    for each in joined:
        if filled >= share * len(segments):
            segments.append([])
        segments[-1].append(each)
        filled += each.byte_length
    return segments


def plan_reads(joined: Iterable[Joined]) -> list[ReadRange]:
    """The GETs that bring the bytes of ``joined``: neighbours in an object share one."""
    wanted: dict[str, list[Extent]] = defaultdict(list)
    for each in joined:
        for extent in each.extents:
            wanted[extent.segment_key].append(extent)
    ranges: list[ReadRange] = []
    for key, extents in wanted.items():
        extents.sort(key=lambda extent: extent.byte_position)
        together: list[Extent] = []
        for extent in extents:
            end = extent.byte_position + extent.byte_length
            if together:
                start, reached = together[0].byte_position, together[-1].byte_position + together[-1].byte_length
                if extent.byte_position - reached > GAP_BYTES_MAX or end - start > RANGE_BYTES_MAX:
                    ranges.append(_range(key, together))
                    together = []
            together.append(extent)
        ranges.append(_range(key, together))
    return ranges


def _range(key: str, extents: list[Extent]) -> ReadRange:
    start = extents[0].byte_position
    end = extents[-1].byte_position + extents[-1].byte_length
    return ReadRange(key, start, end - start, tuple(extents))


def _touch(before: Extent, after: Extent) -> bool:
    same = before.topic_id == after.topic_id and before.partition == after.partition
    return same and before.last_offset + 1 == after.base_offset
