from __future__ import annotations

from collections import Counter

import pytest

from agent.fetch.plan import AnswerLimit, Want, extents_to_load, serving_order


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 10])
def test_every_partition_is_first_about_equally_often(count: int, stride: int) -> None:
    turns = range(0, 400 * stride, stride)
    firsts = Counter(serving_order(count, turn)[0] for turn in turns)
    assert set(firsts) == set(range(count))
    assert max(firsts.values()) <= 3 * 400 / count
    assert sorted(serving_order(count, 17)) == list(range(count))


def test_no_partitions_no_order() -> None:
    assert serving_order(0, 5) == []


def test_loads_until_each_limit_is_reached() -> None:
    wants = [Want(100, [(60, 60), (60, 60), (60, 60)]), Want(100, [(500, 500)]), Want(10, [(5, 5), (6, 6), (7, 7)])]
    assert extents_to_load(wants, [0, 1, 2], 10_000, 10_000) == [2, 1, 2]


def test_stops_at_the_request_limit_but_loads_at_least_one() -> None:
    wants = [Want(100, [(50, 50)]), Want(100, [(50, 50)])]
    assert extents_to_load(wants, [1, 0], 50, 10_000) == [0, 1]
    assert extents_to_load(wants, [1, 0], 1, 0) == [0, 1]
    assert extents_to_load(wants, [0, 1], 51, 10_000) == [1, 1]


def test_memory_to_load_is_bounded_but_what_is_in_memory_is_free() -> None:
    wants = [Want(100, [(50, 500)]), Want(100, [(50, 500), (50, 0)]), Want(100, [(50, 0)])]
    assert extents_to_load(wants, [0, 1, 2], 10_000, 600) == [1, 0, 1]


def test_a_partition_limit_of_nothing_still_lets_the_first_one_progress() -> None:
    wants = [Want(0, [(50, 50)]), Want(0, [(50, 50)])]
    assert extents_to_load(wants, [0, 1], 1000, 1000) == [1, 0]


def test_an_answer_has_one_batch_at_least() -> None:
    limit = AnswerLimit(10)
    assert limit.at_least_one and limit.allowance(4) == 4 and limit.allowance(40) == 10
    limit.sent(0)
    assert limit.at_least_one
    limit.sent(25)
    assert not limit.at_least_one and limit.allowance(4) == 0
