"""When an open segment is sealed. Pure."""

from __future__ import annotations

import enum

SEGMENT_BATCHES_MAX = 10_000
"""A segment of tiny batches is sealed at so many: laying it out and settling its tickets are each done without a pause,
and must not hold up the event loop for more than some tens of milliseconds."""

PRESSURE_SHARE = 8
"""Under memory pressure an open segment is sealed early from this fraction of its full size on."""


class SealReason(enum.StrEnum):
    SIZE = "size"
    LINGER = "linger"
    MEMORY = "memory"
    DRAIN = "drain"


def seal_bytes(segment_bytes_max: int, memory_exhausted: bool, segments_pending: int) -> int:
    """From how many bytes on the open segment is sealed.

    Memory pressure seals a segment at once when nothing else is on its way out (only its commit can give memory
    back), and otherwise only when it is worth a PUT: an agent whose store is slow must not answer the pressure
    with a flood of one-batch segments.
    """
    if not memory_exhausted:
        return segment_bytes_max
    return -(-segment_bytes_max // PRESSURE_SHARE) if segments_pending else 0


def seal_after_append(
    byte_length: int, batch_count: int, segment_bytes_max: int, memory_exhausted: bool, segments_pending: int
) -> SealReason | None:
    """Whether the segment that just grew to ``byte_length`` bytes should be sealed now (linger aside)."""
    if byte_length >= segment_bytes_max or batch_count >= SEGMENT_BATCHES_MAX:
        return SealReason.SIZE
    if memory_exhausted and byte_length >= seal_bytes(segment_bytes_max, memory_exhausted, segments_pending):
        return SealReason.MEMORY
    return None
