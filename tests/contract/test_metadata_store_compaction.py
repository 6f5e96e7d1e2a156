"""What every metadata store must do for compaction: levels, extents by segment, and the swap of extents."""

from __future__ import annotations

import random

import pytest

from metadata.compaction import SegmentSummary
from metadata.model import Extent
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import (
    AnswersSettled,
    Change,
    CompactedSegment,
    DeadSegment,
    ExtentsAdded,
    ExtentsSwapped,
    LogStartMoved,
    PartitionRow,
    SegmentAdded,
    SegmentTotals,
    StoreUnavailable,
    TopicSaved,
)
from tests.support.metadata import added, extent, topic, topic_id
from tests.support.metadata_stores import Kept

SECOND = 500_000_000_000
EVER_MS = 10**15


def compacted(number: int = 0, level: int = 1) -> CompactedSegment:
    return CompactedSegment(2, SECOND + number, f"segments/c{number}", 9_000, level, 4_000)


def placed(
    base: int,
    last: int,
    *,
    number: int = 0,
    position: int = 0,
    partition: int = 0,
    timestamp: int = 1_000,
    level: int = 1,
) -> Extent:
    return Extent(topic_id(1), partition, base, last, f"segments/c{number}", position, 250, timestamp, 5_000, level)


async def filled(kept: Kept) -> list[Extent]:
    """Six segments with an extent of partition 0 each, the fourth with the latest timestamp; three of partition 1."""
    extents = [
        extent(10 * n, 10 * n + 9, key=f"segments/{n}", timestamp=9_000 if n == 3 else 1_000 + n) for n in range(6)
    ]
    changes: list[Change] = [TopicSaved(topic())]
    for n, each in enumerate(extents):
        other = [extent(5 * n, 5 * n + 4, key=f"segments/{n}", partition=1, position=100)] if n < 3 else []
        changes += added(n, each, *other)
    await kept.store.write([*changes, AnswersSettled(1, 9)])
    return extents


async def test_one_extent_takes_the_place_of_many(kept: Kept) -> None:
    extents = await filled(kept)
    before = (await kept.store.reload()).partitions
    new = placed(10, 39, timestamp=9_000)
    other = placed(0, 14, partition=1, position=250)
    await kept.store.write([ExtentsSwapped(compacted(), (new, other), 6, 7_000)])
    for _ in range(2):
        assert await kept.store.find_extents(topic_id(1), 0, 0, 10**9, 100) == [extents[0], new, *extents[4:]]
        assert await kept.store.find_extents(topic_id(1), 0, 25, 1, 100) == [new]
        assert await kept.store.find_extents(topic_id(1), 1, 3, 10**9, 100) == [other]
        assert (await kept.store.reload()).partitions == before, "high watermarks and timestamps stay"
        assert await kept.store.segment_totals(0, 100) == SegmentTotals(7, 15_000, 300 + 500, 3, 3_000)
        dead = await kept.store.find_dead_segments(EVER_MS, 10)
        assert dead == [DeadSegment(1, n, f"segments/{n}", 1_000, 7_000) for n in (1, 2, 3)]
        assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 1_001) == new
        assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 9_000) == new
        assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 9_001) is None
        await kept.reopened()
    following = extent(60, 64, key="segments/7")
    await kept.store.write(added(7, following))
    assert await kept.store.find_extents(topic_id(1), 0, 55, 10**9, 100) == [extents[5], following]


async def test_a_segments_extents_come_in_parts_and_may_be_compacted_again(kept: Kept) -> None:
    await filled(kept)
    first, second = placed(0, 29, timestamp=1_002), placed(30, 59, position=250, timestamp=9_000)
    await kept.store.write([ExtentsSwapped(compacted(), (first,), 3, 7_000)])
    await kept.store.write([ExtentsSwapped(compacted(), (second,), 3, 7_001)])
    await kept.reopened()
    assert await kept.store.find_extents(topic_id(1), 0, 0, 10**9, 100) == [first, second]
    (found,) = await kept.store.find_compactable(1, 10)
    assert found == SegmentSummary(2, SECOND, "segments/c0", 9_000, 1, 4_000, 2, 500)
    whole = placed(0, 59, number=1, timestamp=9_000, level=2)
    await kept.store.write([ExtentsSwapped(compacted(1, level=2), (whole,), 2, 7_002)])
    assert await kept.store.find_extents(topic_id(1), 0, 0, 10**9, 100) == [whole]
    assert DeadSegment(2, SECOND, "segments/c0", 9_000, 7_002) in await kept.store.find_dead_segments(EVER_MS, 10)
    assert await kept.store.find_compactable(1, 10) == []
    assert [each.sequence for each in await kept.store.find_compactable(2, 10)] == [SECOND + 1]


@pytest.mark.parametrize(
    ("extents", "count"),
    [
        ((placed(0, 29),), 2),
        ((placed(0, 29),), 4),
        ((placed(5, 29),), 2),
        ((placed(0, 29), placed(60, 69)), 3),
        ((placed(0, 29), placed(0, 9, partition=7)), 3),
    ],
)
async def test_what_is_not_there_is_not_replaced(kept: Kept, extents: tuple[Extent, ...], count: int) -> None:
    before = await filled(kept)
    with pytest.raises((ValueError, StoreUnavailable)):
        await kept.store.write([*added(8), ExtentsSwapped(compacted(), extents, count, 7_000)])
    assert (await kept.store.reload()).answers == ()
    assert await kept.store.find_extents(topic_id(1), 0, 0, 10**9, 100) == before
    assert await kept.store.segment_totals(0, 100) == SegmentTotals(6, 6_000, 900, 0, 0)


async def test_segments_are_found_by_level_and_age(kept: Kept) -> None:
    changes: list[Change] = [TopicSaved(topic())]
    for sequence, level, commit_ms in ((1, 0, 30), (2, 9, 10), (3, 0, 20), (4, 0, 30)):
        each = extent(sequence * 10 - 10, sequence * 10 - 1, key=f"segments/{sequence}")
        changes.append(SegmentAdded(1, sequence, f"segments/{sequence}", 1_000, commit_ms, b"", level))
        changes.append(ExtentsAdded((each,)))
    changes.append(SegmentAdded(1, 5, "segments/5", 1_000, 5, b"", 0))  # all duplicates: nothing is in it
    await kept.store.write(changes)
    assert (await kept.store.reload()).answers[1].level == 9
    expected = [SegmentSummary(1, n, f"segments/{n}", 1_000, 0, ms, 1, 100) for n, ms in ((3, 20), (1, 30), (4, 30))]
    assert await kept.store.find_compactable(0, 10) == expected
    assert await kept.store.find_compactable(0, 2) == expected[:2]
    assert [each.sequence for each in await kept.store.find_compactable(9, 10)] == [2]


async def test_extents_are_found_by_segment_and_by_range(kept: Kept) -> None:
    extents = await filled(kept)
    found = await kept.store.find_segment_extents([(1, 2), (1, 4), (1, 77)])
    other = extent(10, 14, key="segments/2", partition=1, position=100)
    assert sorted(found, key=str) == sorted([extents[2], extents[4], other], key=str)
    await kept.store.write([LogStartMoved(topic_id(1), 0, 35)])
    assert await kept.store.find_segment_extents([(1, 2), (1, 3)]) in ([other, extents[3]], [extents[3], other])
    ranges = [(topic_id(1), 0, 40, 59), (topic_id(1), 1, 0, 4), (topic_id(9), 0, 0, 9), (topic_id(1), 0, 41, 49)]
    assert await kept.store.find_ranges(ranges) == [
        extents[4:],
        [extent(0, 4, key="segments/0", partition=1, position=100)],
        [],
        [],
    ]
    assert await kept.store.find_ranges([(topic_id(1), 0, 0, 59)] * 230) == [extents] * 230


@pytest.mark.parametrize("seed", range(3))
async def test_swaps_of_any_shape_leave_what_the_model_has(kept: Kept, seed: int) -> None:
    """Random commits and swaps, compared after each with the store in memory."""
    rng = random.Random(seed)
    model = MemoryMetadataStore()
    await model.open("model")
    ends = [0, 0]
    last: list[list[Extent]] = [[], []]
    changes: list[Change] = [TopicSaved(topic())]
    for sequence in range(60):
        for partition in range(2):
            end = ends[partition] + rng.randrange(1, 20)
            new = extent(
                ends[partition], end, key=f"segments/{sequence}", partition=partition, timestamp=rng.randrange(3_000)
            )
            last[partition].append(new)
            ends[partition] = end + 1
        changes += added(sequence, *[extents[-1] for extents in last])
        if rng.random() < 0.4:
            swaps, count = [], 0
            for partition in range(2):
                extents = last[partition]
                begin = rng.randrange(len(extents))
                end = rng.randrange(begin, min(begin + 8, len(extents))) + 1
                replaced = extents[begin:end]
                new = placed(
                    replaced[0].base_offset,
                    replaced[-1].last_offset,
                    number=sequence,
                    partition=partition,
                    timestamp=max(each.max_timestamp_ms for each in replaced),
                )
                extents[begin:end] = [new]
                swaps.append(new)
                count += len(replaced)
            for store in (model, kept.store):
                await store.write(changes)  # a swap is of what is durable
                await store.write([ExtentsSwapped(compacted(sequence), tuple(swaps), count, 8_000)])
            changes = []
    for store in (model, kept.store):
        await store.write([*changes, AnswersSettled(1, 99)])
    assert await kept.store.segment_totals(0, 10**6) == await model.segment_totals(0, 10**6)
    dead = [await store.find_dead_segments(EVER_MS, 1_000) for store in (kept.store, model)]
    assert sorted(dead[0], key=str) == sorted(dead[1], key=str) != []
    for partition in range(2):
        found = await kept.store.find_extents(topic_id(1), partition, 0, 10**9, 10**9)
        assert found == last[partition] == await model.find_extents(topic_id(1), partition, 0, 10**9, 10**9)
        for timestamp in range(0, 3_100, 50):
            assert await kept.store.find_extent_by_timestamp(
                topic_id(1), partition, timestamp
            ) == await model.find_extent_by_timestamp(topic_id(1), partition, timestamp)
    reloaded = (await kept.store.reload()).partitions
    assert reloaded == (await model.reload()).partitions
    assert reloaded[0] == PartitionRow(topic_id(1), 0, 0, ends[0], reloaded[0].max_timestamp_ms)
