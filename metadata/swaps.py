"""Whether a swap may happen: what a compactor read compared with what is there. Pure.

Extents never change; they are added at the end of a partition, and removed by a swap or below the log start. So what
tiles the same offsets, in the segments that were read, is what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metadata.compaction import ExtentSwap
from metadata.model import Extent, Refusal, Refused


@dataclass(frozen=True, slots=True)
class RangeSwap:
    """``extent`` takes the place of ``count`` others, of which ``first_last_offset`` is the first one's last offset."""

    extent: Extent
    count: int
    first_last_offset: int


def match_swap(swap: ExtentSwap, found: Sequence[Sequence[Extent]]) -> list[RangeSwap]:
    """What is left to be done of ``swap``, where ``found`` lies in the ranges of its extents; done ones are left out.

    :raises Refused: INVALID_REQUEST: other extents are there than were read, or the swap contradicts itself.
    """
    ranges = []
    for extent, there in zip(swap.extents, found, strict=True):
        if extent.segment_key != swap.segment_key or extent.level != swap.level or swap.level < 1:
            raise Refused(Refusal.INVALID_REQUEST, f"an extent of another segment than {swap.segment_key}")
        if len(there) == 1 and there[0] == extent:
            continue
        expected = extent.base_offset
        for each in there:
            if each.base_offset != expected or each.segment_key not in swap.inputs:
                break
            expected = each.last_offset + 1
        if not there or expected != extent.last_offset + 1:
            raise Refused(
                Refusal.INVALID_REQUEST,
                f"the extents of partition {extent.partition} of topic {extent.topic_id.hex()} between"
                f" {extent.base_offset} and {extent.last_offset} are not those that were compacted",
            )
        ranges.append(RangeSwap(extent, len(there), there[0].last_offset))
    return ranges
