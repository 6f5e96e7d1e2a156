"""What a job writes and reads: extents that touch are joined, segments are filled in order, neighbours share a GET."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from ingest.compaction.layout import GAP_BYTES_MAX, RANGE_BYTES_MAX, Joined, fill_segments, join_extents, plan_reads
from metadata.model import Extent

A, B = bytes(16), bytes([1]) * 16


def extent(
    base: int,
    last: int,
    *,
    topic_id: bytes = A,
    partition: int = 0,
    key: str = "s/1",
    position: int = 0,
    size: int = 100,
) -> Extent:
    return Extent(topic_id, partition, base, last, key, position, size, 0, 0)


def spans(joined: list[Joined]) -> list[tuple[bytes, int, int, int]]:
    return [
        (each.extents[0].topic_id, each.extents[0].partition, each.base_offset, each.last_offset) for each in joined
    ]


def test_neighbours_in_offsets_are_joined_and_nothing_else() -> None:
    extents = [
        extent(10, 19),
        extent(0, 9),
        extent(30, 39),
        extent(20, 29, partition=1),
        extent(40, 49, topic_id=B),
    ]
    assert spans(join_extents(extents, 10_000)) == [(A, 0, 0, 19), (A, 0, 30, 39), (A, 1, 20, 29), (B, 0, 40, 49)]


def test_joined_extents_have_a_largest_size_that_only_a_single_one_exceeds() -> None:
    joined = join_extents(
        [extent(0, 0, size=60), extent(1, 1, size=40), extent(2, 2, size=1), extent(3, 3, size=500)], 100
    )
    assert [each.byte_length for each in joined] == [100, 1, 500]


def test_segments_are_filled_in_order_and_about_evenly() -> None:
    joined = join_extents([extent(10 * n, 10 * n, size=40) for n in range(5)], 100)
    segments = fill_segments(joined, 100)
    assert [[each.base_offset for each in segment] for segment in segments] == [[0, 10, 20], [30, 40]]
    assert len(fill_segments(joined, 160)) == 1, "no small one at the end"
    assert fill_segments([], 100) == []
    for count in range(1, 60):
        joined = join_extents([extent(10 * n, 10 * n, size=7) for n in range(count)], 7)
        sizes = [sum(each.byte_length for each in segment) for segment in fill_segments(joined, 100)]
        assert sum(sizes) == 7 * count
        assert max(sizes) <= 125 + 7
        assert count < 20 or min(sizes) >= 50


@pytest.mark.parametrize("seed", range(20))
def test_every_extent_is_read_once_within_bounds(seed: int) -> None:
    rng = random.Random(seed)
    extents = []
    for key in ("s/1", "s/2"):
        position = 0
        for base in range(200):
            position += rng.choice((0, 10, GAP_BYTES_MAX, GAP_BYTES_MAX + 1))
            size = rng.choice((61, 5_000, RANGE_BYTES_MAX // 2, RANGE_BYTES_MAX + 1))
            extents.append(extent(2 * base, 2 * base, key=key, position=position, size=size, partition=key == "s/2"))
            position += size
    rng.shuffle(extents)
    ranges = plan_reads(join_extents(extents, 1 << 20))
    read = [each for wanted in ranges for each in wanted.extents]
    assert sorted(map(str, read)) == sorted(map(str, extents))
    reached: dict[str, int] = defaultdict(int)
    for wanted in ranges:
        assert wanted.start >= reached[wanted.segment_key], "ranges of an object do not overlap"
        reached[wanted.segment_key] = wanted.start + wanted.length
        assert wanted.length <= RANGE_BYTES_MAX or len(wanted.extents) == 1
        for each in wanted.extents:
            assert each.segment_key == wanted.segment_key
            assert wanted.start <= each.byte_position
            assert each.byte_position + each.byte_length <= wanted.start + wanted.length


def test_a_whole_object_is_one_get() -> None:
    extents = [extent(0, 9, partition=n, position=100 * n) for n in range(1_000)]
    (wanted,) = plan_reads(join_extents(extents, 1 << 20))
    assert (wanted.start, wanted.length) == (0, 100_000)
