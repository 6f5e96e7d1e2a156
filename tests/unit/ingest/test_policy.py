from __future__ import annotations

import pytest

from ingest.policy import SEGMENT_BATCHES_MAX, SealReason, seal_after_append, seal_bytes


@pytest.mark.parametrize(
    ("byte_length", "batch_count", "exhausted", "pending", "reason"),
    [
        (799, 1, False, 0, None),
        (800, 1, False, 9, SealReason.SIZE),
        (1, SEGMENT_BATCHES_MAX, False, 0, SealReason.SIZE),
        (1, SEGMENT_BATCHES_MAX - 1, False, 0, None),
        (1, 1, True, 0, SealReason.MEMORY),
        (99, 1, True, 1, None),
        (100, 1, True, 1, SealReason.MEMORY),
        (800, 1, True, 1, SealReason.SIZE),
    ],
)
def test_when_a_segment_is_sealed(
    byte_length: int, batch_count: int, exhausted: bool, pending: int, reason: SealReason | None
) -> None:
    assert seal_after_append(byte_length, batch_count, 800, exhausted, pending) is reason


@pytest.mark.parametrize("exhausted", [False, True])
@pytest.mark.parametrize("pending", [0, 1])
@pytest.mark.parametrize("segment_bytes_max", [1, 7, 8, 800, 801])
def test_appending_stops_where_the_segment_is_sealed(segment_bytes_max: int, exhausted: bool, pending: int) -> None:
    stop = seal_bytes(segment_bytes_max, exhausted, pending)
    for byte_length in range(1, segment_bytes_max + 2):
        reason = seal_after_append(byte_length, 1, segment_bytes_max, exhausted, pending)
        assert (reason is not None) == (byte_length >= stop)
