"""What readers see, and how much of it memory holds."""

from __future__ import annotations

import pytest

from metadata.visible import VisibleIndex
from tests.support.metadata import EMPTY, extent, topic, topic_id


def index(extents_max: int = 100, topics: int = 1) -> VisibleIndex:
    visible = VisibleIndex(EMPTY, extents_max)
    for number in range(1, topics + 1):
        visible.put_topic(topic(number))
    return visible


def test_the_high_watermark_moves_with_the_extents() -> None:
    visible = index()
    visible.add_extents([extent(0, 4, timestamp=9), extent(5, 9, timestamp=3), extent(0, 0, partition=1)])
    first, second = visible.partition(topic_id(1), 0), visible.partition(topic_id(1), 1)
    assert first is not None and second is not None
    assert (first.high_watermark, first.max_timestamp_ms, second.high_watermark) == (10, 9, 1)


def test_a_hole_is_noticed() -> None:
    visible = index()
    with pytest.raises(AssertionError):
        visible.add_extents([extent(1, 4)])


def test_memory_is_bounded_over_all_partitions_and_the_oldest_commits_go_first() -> None:
    visible = index(extents_max=6, topics=2)
    for number in range(5):
        visible.add_extents([extent(number, number), extent(number, number, of=topic_id(2))])
    assert visible.extent_count == 6
    for number in (1, 2):
        partition = visible.partition(topic_id(number), 0)
        assert partition is not None
        assert [each.base_offset for each in partition.newest] == [2, 3, 4]
        assert partition.newest_offset == 2
        assert partition.find(1, 1) is None
        assert partition.find(2, 10**9) == list(partition.newest)


def test_extents_of_a_deleted_topic_leave_memory_and_are_not_added() -> None:
    visible = index(extents_max=4, topics=2)
    visible.add_extents([extent(0, 0), extent(1, 1)])
    visible.drop_topic(topic_id(1))
    assert visible.partition(topic_id(1), 0) is None
    visible.add_extents([extent(2, 2), *[extent(number, number, of=topic_id(2)) for number in range(6)]])
    kept = visible.partition(topic_id(2), 0)
    assert kept is not None
    assert [each.base_offset for each in kept.newest] == [2, 3, 4, 5]
    assert visible.partition_count == 2


def test_partitions_that_do_not_exist() -> None:
    visible = index()
    assert [visible.partition(*wrong) for wrong in ((topic_id(1), 2), (topic_id(1), -1), (topic_id(2), 0))] == [
        None
    ] * 3


def test_find_stops_at_the_bytes_and_at_the_count() -> None:
    visible = index()
    visible.add_extents([extent(number * 10, number * 10 + 9, size=100) for number in range(10)])
    partition = visible.partition(topic_id(1), 0)
    assert partition is not None

    def bases(offset: int, byte_max: int, count_max: int = 99) -> list[int]:
        found = partition.find(offset, byte_max, count_max)
        assert found is not None
        return [each.base_offset for each in found]

    assert bases(0, 1) == [0]
    assert bases(15, 201) == [10, 20, 30]
    assert bases(15, 10**9, 2) == [10, 20]
    assert bases(95, 10**9) == [90]
    assert bases(100, 1) == []


def test_what_changed_between_two_loads() -> None:
    before, after = index(topics=2), VisibleIndex(EMPTY)
    after.put_topic(topic(2, name="renamed"))
    after.put_topic(topic(3))
    change = after.changes_since(before)
    assert [each.name for each in change.upserted] == ["renamed", "topic-3"]
    assert change.deleted == (topic_id(1),)
