from __future__ import annotations

from agent.fetch.pool import Pool
from runtime.budget import Budget


def make(capacity: int = 100) -> tuple[Pool, Budget]:
    budget = Budget(1000)
    return Pool(capacity, budget), budget


def test_the_least_recently_used_goes_first() -> None:
    pool, budget = make()
    for key in "abc":
        pool.insert(key, key, 30, pins=0)
    assert pool.get("a") is not None
    pool.insert("d", "d", 30, pins=0)
    assert [pool.contains(key) for key in "abcd"] == [True, False, True, True]
    assert pool.held_bytes == budget.held_bytes == 90


def test_pinned_entries_stay_and_go_when_unpinned() -> None:
    pool, budget = make()
    first = pool.insert("a", "a", 60, pins=2)
    second = pool.insert("b", "b", 60, pins=1)
    assert pool.held_bytes == 120 and pool.evictable_bytes == 0
    first.unpin()
    assert pool.contains("a")
    first.unpin()
    assert not pool.contains("a") and budget.held_bytes == 60
    second.unpin()
    assert pool.contains("b") and pool.evictable_bytes == 60


def test_dropped_while_pinned_is_counted_until_unpinned() -> None:
    pool, budget = make()
    entry = pool.insert("a", "a", 60, pins=1)
    pool.drop("a")
    pool.drop("a")
    assert pool.get("a") is None and budget.held_bytes == 60
    entry.pin()
    entry.unpin()
    assert budget.held_bytes == 60
    entry.unpin()
    assert budget.held_bytes == 0 and pool.held_bytes == 0 and pool.pinned_bytes == 0


def test_sources_live_as_long_as_what_was_built_from_them() -> None:
    pool, budget = make()
    source = pool.insert("source", b"", 80, pins=0)
    pool.insert("run", "run", 10, pins=0, sources=[source])
    pool.insert("x", "x", 5, pins=0)
    assert pool.contains("source"), "pinned by the run"
    pool.insert("y", "y", 30, pins=0)
    assert not pool.contains("run") and not pool.contains("source")
    assert budget.held_bytes == 35


def test_an_entry_larger_than_the_pool_is_used_and_forgotten() -> None:
    pool, budget = make()
    entry = pool.insert("a", "a", 500, pins=1)
    assert pool.contains("a")
    entry.unpin()
    assert not pool.contains("a") and budget.held_bytes == 0
    pool.insert("b", "b", 500, pins=0)
    assert not pool.contains("b")
    assert budget.held_bytes == 0


def test_while_the_budget_is_exhausted_half_of_it_must_do() -> None:
    pool, budget = make()
    for key in "abcd":
        pool.insert(key, key, 24, pins=0)
    budget.take("request", 990)
    pool.insert("e", "e", 24, pins=0)
    assert pool.held_bytes <= 50


def test_a_borrower_uses_what_is_free_and_gives_it_back() -> None:
    budget = Budget(1000)
    hot = Pool(100, budget)
    cold = Pool(20, budget, lender=hot)
    for key in range(12):
        cold.insert(key, key, 10, pins=0)
    assert cold.held_bytes == 120
    hot.insert("a", "a", 90, pins=0)
    assert (hot.held_bytes, cold.held_bytes) == (90, 30)
    cold.insert("x", "x", 10, pins=0)
    assert hot.contains("a") and cold.held_bytes == 30
    hot.insert("b", "b", 100, pins=0)
    assert (hot.held_bytes, cold.held_bytes) == (100, 20)
