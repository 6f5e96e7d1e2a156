from __future__ import annotations

from collections import Counter

from agent.rendezvous import highest, seed

THINGS = [f"segments/a/{number}".encode() for number in range(20_000)]


def owners(node_ids: list[int]) -> list[int]:
    seeds = [seed(node_id) for node_id in node_ids]
    return [node_ids[highest(thing, seeds)] for thing in THINGS]


def test_every_agent_has_its_share() -> None:
    for node_ids in ([1, 2], [1, 2, 3], list(range(100, 110)), [7, 2**20, 2**31 - 1]):
        counts = Counter(owners(node_ids))
        fair = len(THINGS) / len(node_ids)
        assert all(0.9 * fair < counts[node_id] < 1.1 * fair for node_id in node_ids), counts


def test_one_that_leaves_takes_only_its_own_along() -> None:
    before, after = owners([1, 2, 3, 4]), owners([1, 2, 4])
    assert all(new == old for old, new in zip(before, after, strict=True) if old != 3)
    moved = Counter(new for old, new in zip(before, after, strict=True) if old == 3)
    assert set(moved) == {1, 2, 4} and min(moved.values()) > 0.25 * sum(moved.values()), "spread over all others"


def test_the_order_of_the_roster_does_not_matter() -> None:
    assert owners([4, 1, 9]) == owners([9, 4, 1])
