from __future__ import annotations

import pytest

from agent.fetch import extents as module
from agent.fetch.extents import ExtentIndex
from metadata.model import Extent, ExtentsFound
from tests.unit.agent.fetch.world import TOPIC


def extent(base: int, count: int = 10, partition: int = 0, length: int = 100) -> Extent:
    return Extent(TOPIC, partition, base, base + count - 1, f"s{base}", 0, length, 0, 0)


def bases(index: ExtentIndex, offset: int, byte_max: int, partition: int = 0) -> list[int] | None:
    state = index.get(TOPIC, partition)
    assert state is not None
    located = index.locate(state, offset, byte_max)
    return None if located is None else [found.base_offset for found in located.extents]


def test_the_tail_is_found_by_offset_and_bounded_by_bytes() -> None:
    index = ExtentIndex(10_000)
    index.announce([extent(0), extent(10), extent(20)])
    assert bases(index, 0, 1) == [0]
    assert bases(index, 9, 101) == [0, 10]
    assert bases(index, 10, 10_000) == [10, 20]
    assert bases(index, 29, 10_000) == [20]


def test_whether_more_follows_is_known() -> None:
    index = ExtentIndex(10_000)
    index.announce([extent(0), extent(10)])
    state = index.get(TOPIC, 0)
    assert state is not None and state.high_watermark == 20
    for byte_max, more in ((100, True), (200, False)):
        located = index.locate(state, 0, byte_max)
        assert located is not None and located.more is more


def test_a_gap_forgets_what_was_before_it() -> None:
    index = ExtentIndex(10_000)
    index.announce([extent(0), extent(20)])
    assert bases(index, 0, 1) is None
    assert bases(index, 15, 1) is None
    assert bases(index, 20, 1) == [20]


def test_only_the_newest_bytes_are_hot() -> None:
    index = ExtentIndex(250)
    index.announce([extent(0), extent(10), extent(20), extent(0, partition=1)])
    state = index.get(TOPIC, 0)
    assert state is not None
    located = index.locate(state, 0, 10_000)
    assert located is not None and located.hot == 2, "20, and half of 10"
    located = index.locate(state, 20, 10_000)
    assert located is not None and located.hot == 1
    index.announce([extent(10, partition=1, length=1000)])
    located = index.locate(state, 20, 10_000)
    assert located is not None and located.hot == 0


def test_window_and_tail_join() -> None:
    index = ExtentIndex(10_000)
    index.announce([extent(40), extent(50)])
    index.learn(TOPIC, 0, ExtentsFound(60, 5, (extent(10), extent(20), extent(30))), 0)
    assert bases(index, 25, 10_000) == [20, 30, 40, 50]
    assert bases(index, 10, 150) == [10, 20]
    state = index.get(TOPIC, 0)
    assert state is not None
    located = index.locate(state, 25, 10_000)
    assert located is not None and (located.hot, located.more) == (2, False)
    assert bases(index, 5, 1) is None


def test_a_window_that_ends_early_is_not_enough() -> None:
    index = ExtentIndex(10_000)
    index.learn(TOPIC, 0, ExtentsFound(100, 0, (extent(0), extent(10))), 0)
    assert bases(index, 0, 200) == [0, 10]
    assert bases(index, 0, 201) is None
    assert bases(index, 30, 1) is None


def test_the_service_may_know_more_than_was_announced() -> None:
    index = ExtentIndex(10_000)
    index.announce([extent(0)])
    index.learn(TOPIC, 0, ExtentsFound(20, 0), 0)
    assert bases(index, 0, 100) == [0]
    assert bases(index, 0, 101) is None
    index.announce([extent(10)])
    assert bases(index, 0, 101) == [0, 10]


def test_answers_from_before_a_reset_are_not_learned() -> None:
    index = ExtentIndex(10_000)
    before = index.generation
    index.forget_topics([TOPIC])
    index.learn(TOPIC, 0, ExtentsFound(20, 0, (extent(0),)), before)
    assert index.get(TOPIC, 0) is None
    index.learn(TOPIC, 0, ExtentsFound(20, 0, (extent(0),)), index.generation)
    assert index.get(TOPIC, 0) is not None
    index.clear()
    assert index.get(TOPIC, 0) is None


def test_tail_and_windows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAIL_EXTENTS_MAX", 5)
    monkeypatch.setattr(module, "WINDOW_EXTENTS_MAX", 5)
    index = ExtentIndex(10_000)
    for base in range(0, 40, 10):
        index.announce([extent(base), extent(base, partition=1)])
    assert bases(index, 10, 1) is None and bases(index, 20, 1) == [20]
    assert bases(index, 0, 1, partition=1) is None and bases(index, 10, 1, partition=1) == [10]
    for partition in range(2, 6):
        index.learn(TOPIC, partition, ExtentsFound(90, 0, (extent(0), extent(10))), 0)
    assert [bases(index, 0, 1, partition) for partition in range(2, 6)] == [None, None, [0], [0]]
    index.forget_extents(TOPIC, 5)
    assert bases(index, 0, 1, 5) is None


def test_an_extent_that_took_the_place_of_others_is_not_new_but_makes_them_forgotten() -> None:
    index = ExtentIndex(10_000)
    index.announce([extent(0), extent(10), extent(20), extent(30)])
    generation = index.generation
    index.announce([Extent(TOPIC, 0, 0, 19, "compacted", 0, 50, 0, 0, 10)])
    state = index.get(TOPIC, 0)
    assert state is not None and state.high_watermark == 40
    assert bases(index, 5, 10_000) is None, "the service is asked"
    assert bases(index, 20, 10_000) == [20, 30]
    assert index.generation != generation, "what was asked for before must not be learned"
    index.announce([extent(40)])
    assert bases(index, 25, 10_000) == [20, 30, 40]
