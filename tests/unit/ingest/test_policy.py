from __future__ import annotations

import pytest

from ingest.policy import SEGMENT_BATCHES_MAX, SealReason, seal_after_append


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
