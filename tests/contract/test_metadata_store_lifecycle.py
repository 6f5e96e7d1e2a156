"""What every metadata store must do with what is gone: log starts, dead segments, purges in bounded steps."""

from __future__ import annotations

import random

import pytest

from metadata.store.port import (
    AnswersSettled,
    Change,
    DeadSegment,
    LogStartMoved,
    PartitionRow,
    ProducerSaved,
    SegmentsDropped,
    SegmentTotals,
    StoreUnavailable,
    TopicDropped,
    TopicSaved,
)
from tests.support.metadata import added, extent, topic, topic_id
from tests.support.metadata_stores import Kept

EVER_MS = 10**15
NOW_MS = 9_000


async def purged(kept: Kept, now_ms: int = NOW_MS) -> None:
    while await kept.store.purge(3, now_ms):
        pass


async def live(kept: Kept) -> list[tuple[int, int]]:
    """(live bytes, dead bytes) of each segment, in the order they were added."""
    totals, after_id = [], 0
    while True:
        part = await kept.store.segment_totals(after_id, 1)
        if part.segments:
            totals.append((part.live_bytes, part.dead_bytes))
        if not part.last_id:
            return totals
        after_id = part.last_id


async def test_segments_know_what_is_referenced_of_them(kept: Kept) -> None:
    await kept.store.write(
        [
            TopicSaved(topic(1)),
            *added(1, extent(0, 9, size=100), extent(0, 4, partition=1, size=30)),
            *added(2, extent(10, 19, size=70, key="segments/2")),
            *added(3),
        ]
    )
    assert await live(kept) == [(130, 0), (70, 0), (0, 1_000)]
    totals = SegmentTotals(3, 3_000, 200, 1, 1_000)
    assert await kept.store.segment_totals(0, 100) == totals
    await kept.reopened()
    assert await kept.store.segment_totals(0, 100) == totals
    await kept.store.write(added(4, extent(20, 20, size=5, key="segments/4")))
    assert await live(kept) == [(130, 0), (70, 0), (0, 1_000), (5, 0)]


async def test_extents_below_the_log_start_go_and_the_one_that_holds_it_stays(kept: Kept) -> None:
    extents = [extent(base, base + 9, key=f"segments/{base // 10}") for base in range(0, 100, 10)]
    await kept.store.write(
        [TopicSaved(topic()), *[change for each in range(10) for change in added(each, extents[each])]]
    )
    await kept.store.write([LogStartMoved(topic_id(1), 0, 45)])
    row = PartitionRow(topic_id(1), 0, 45, 100, 1_000)
    assert (await kept.store.reload()).partitions[0] == row
    assert await kept.store.find_extents(topic_id(1), 0, 45, 1, 100) == [extents[4]]
    await purged(kept)
    assert await live(kept) == [(0, 1_000)] * 4 + [(100, 0)] * 6
    assert await kept.store.find_extents(topic_id(1), 0, 45, 10**9, 100) == extents[4:]
    assert await kept.store.find_extents(topic_id(1), 0, 0, 10**9, 100) == extents[4:]
    assert (await kept.reopened()).partitions[0] == row
    await kept.store.write([LogStartMoved(topic_id(1), 0, 40)])
    assert (await kept.store.reload()).partitions[0].log_start_offset == 45, "it never falls"
    assert not await kept.store.purge(3, NOW_MS)


async def test_a_log_that_is_emptied_goes_on_where_it_ended(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 9, timestamp=5_000))])
    await kept.store.write([LogStartMoved(topic_id(1), 0, 10)])
    for _ in range(2):
        assert (await kept.store.reload()).partitions[0] == PartitionRow(topic_id(1), 0, 10, 10, -1)
        assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 0) is None
        await purged(kept)
    assert (await kept.reopened()).partitions[0] == PartitionRow(topic_id(1), 0, 10, 10, -1)
    new = extent(10, 12, key="segments/2", timestamp=3_000)
    await kept.store.write(added(2, new))
    assert (await kept.store.reload()).partitions[0] == PartitionRow(topic_id(1), 0, 10, 13, 3_000)
    assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 3_000) == new
    assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 3_001) is None


@pytest.mark.parametrize("wrong", [LogStartMoved(topic_id(1), 0, 11), LogStartMoved(topic_id(1), 7, 0)])
async def test_a_log_does_not_start_above_its_end(kept: Kept, wrong: Change) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 9))])
    with pytest.raises((ValueError, StoreUnavailable)):
        await kept.store.write([*added(2), wrong])
    assert [answer.sequence for answer in (await kept.store.reload()).answers] == [1]


@pytest.mark.parametrize("purge", [False, True], ids=["before the purge", "purged"])
async def test_timestamps_are_found_whatever_is_gone_below(kept: Kept, purge: bool) -> None:
    """The largest timestamp of all lies in an extent that is gone: it must not hide smaller ones."""
    generator = random.Random(11)
    base, changes, expected = 0, [TopicSaved(topic())], []
    for sequence in range(40):
        last = base + generator.randrange(1, 50)
        timestamp = 500 if sequence == 12 else generator.randrange(sequence, sequence + 30)
        expected.append(extent(base, last, key=f"segments/{sequence}", timestamp=timestamp))
        changes += added(sequence, expected[-1])
        base = last + 1
    await kept.store.write([*changes, LogStartMoved(topic_id(1), 0, expected[15].base_offset + 1)])
    if purge:
        await purged(kept)
        await kept.reopened()
    for timestamp in [*range(-1, 75), 500, 501]:
        wanted = next((each for each in expected[15:] if each.max_timestamp_ms >= timestamp), None)
        assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, timestamp) == wanted, timestamp


async def test_a_purge_goes_in_bounded_steps_and_commits_come_in_between(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic(1)), TopicSaved(topic(2))])
    for number in range(20):
        await kept.store.write(added(number, extent(number, number, size=10, key=f"segments/{number}")))
    await kept.store.write([ProducerSaved(topic_id(1), 1, number, b"x", 1) for number in range(10)])
    await kept.store.write([TopicDropped(topic_id(1))])
    assert sum(bytes_live for bytes_live, _ in await live(kept)) == 200, "nothing is removed in the command itself"
    steps = 0
    while await kept.store.purge(4, NOW_MS + steps):
        steps += 1
        one = extent(steps - 1, steps - 1, of=topic_id(2), size=1, key=f"segments/{100 + steps}")
        await kept.store.write(added(100 + steps, one))
        assert sum(bytes_live for bytes_live, _ in await live(kept)) == max(0, 200 - 40 * steps) + steps
    assert steps >= 5
    await kept.store.write([AnswersSettled(1, 1_000)])
    dead = await kept.store.find_dead_segments(EVER_MS, 100)
    assert [each.dead_ms - NOW_MS for each in dead] == [number // 4 for number in range(20)]
    assert (await kept.reopened()).producers == ()


async def test_a_purge_goes_on_after_a_restart(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, *[extent(each, each) for each in range(10)])])
    await kept.store.write([LogStartMoved(topic_id(1), 0, 9), AnswersSettled(1, 1)])
    assert await kept.store.purge(4, NOW_MS)
    await kept.reopened()
    assert await live(kept) == [(600, 0)]
    await purged(kept)
    assert await live(kept) == [(100, 0)]
    assert await kept.store.find_dead_segments(EVER_MS, 100) == []


async def test_the_dead_are_named_longest_first_and_only_once_nobody_asks_for_their_answers(kept: Kept) -> None:
    await kept.store.write(
        [
            TopicSaved(topic()),
            *added(1, extent(0, 4)),
            *added(2, extent(5, 9, key="segments/2")),
            *added(3, extent(10, 14, key="segments/3")),
            *added(4),
        ]
    )
    for offset, now_ms in ((5, 300), (10, 200)):
        await kept.store.write([LogStartMoved(topic_id(1), 0, offset)])
        await purged(kept, now_ms)
    assert await kept.store.find_dead_segments(EVER_MS, 10) == [], "their answers are kept"
    await kept.store.write([AnswersSettled(1, 3)])
    first, second = DeadSegment(1, 2, "segments/2", 1_000, 200), DeadSegment(1, 1, "segments/1", 1_000, 300)
    assert await kept.store.find_dead_segments(EVER_MS, 10) == [first, second]
    assert await kept.store.find_dead_segments(EVER_MS, 1) == [first]
    assert await kept.store.find_dead_segments(200, 10) == [first]
    assert await kept.store.find_dead_segments(199, 10) == []
    await kept.store.write([AnswersSettled(1, 4)])
    assert (await kept.store.find_dead_segments(EVER_MS, 10))[2] == DeadSegment(1, 4, "segments/4", 1_000, 5_000)


async def test_rows_of_deleted_objects_go_and_referenced_ones_never(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 4)), *added(2), *added(3), AnswersSettled(1, 3)])
    assert await kept.store.find_segments([(1, 1), (1, 2), (1, 9), (2, 1)]) == {
        (1, 1): "segments/1",
        (1, 2): "segments/2",
    }
    await kept.store.write([SegmentsDropped(((1, 1), (1, 2), (7, 7)))])
    assert await kept.store.find_segments([(1, 1), (1, 2), (1, 3)]) == {(1, 1): "segments/1", (1, 3): "segments/3"}
    assert await kept.store.find_segments([]) == {}
    await kept.reopened()
    await kept.store.write(added(4, extent(5, 9, key="segments/4")))
    found = await kept.store.find_extents(topic_id(1), 0, 0, 10**9, 10)
    assert [each.segment_key for each in found] == ["segments/1", "segments/4"]


async def test_a_topic_dropped_with_its_log_start_moved(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 4), extent(5, 9)), AnswersSettled(1, 1)])
    await kept.store.write([LogStartMoved(topic_id(1), 0, 5)])
    await kept.store.write([TopicDropped(topic_id(1))])
    await purged(kept)
    assert await live(kept) == [(0, 1_000)]
    assert not await kept.store.purge(1, NOW_MS)


async def test_bytes_of_a_partition_are_added_up_in_parts(kept: Kept) -> None:
    extents = [extent(base, base + 9, size=base + 1) for base in range(0, 50, 10)]
    await kept.store.write([TopicSaved(topic()), *added(1, *extents, extent(0, 9, partition=1))])
    assert await kept.store.sum_extents(topic_id(1), 0, 0, 50, 10) == (105, 50)
    assert await kept.store.sum_extents(topic_id(1), 0, 0, 50, 2) == (12, 20)
    assert await kept.store.sum_extents(topic_id(1), 0, 20, 50, 2) == (52, 40)
    assert await kept.store.sum_extents(topic_id(1), 0, 15, 50, 1) == (11, 20), "the one that holds the offset counts"
    assert await kept.store.sum_extents(topic_id(1), 0, 40, 50, 2) == (41, 50)
    assert await kept.store.sum_extents(topic_id(1), 0, 0, 30, 10) == (33, 30)
    assert await kept.store.sum_extents(topic_id(9), 0, 0, 50, 2) == (0, 50)
