"""Memory set aside at the start: allocation, and what happens when it is full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import SystemClock
from storage.arena import Arena
from storage.memory import MemoryStore
from storage.store import StorageUnavailable

CAPACITY = 1000


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.randoms(use_true_random=False)), max_size=60))
def test_pieces_never_overlap_and_everything_freed_can_be_used_again(steps: list[tuple[int, bool, object]]) -> None:
    arena = Arena(CAPACITY)
    held: dict[int, tuple[int, memoryview, bytes]] = {}
    for number, (length, remove, chooser) in enumerate(steps):
        if remove and held:
            victim = chooser.choice(sorted(held))  # type: ignore[attr-defined]
            start, view, _ = held.pop(victim)
            arena.free(start, len(view))
            continue
        data = bytes([number % 256]) * length
        placed = arena.store([data[:3], data[3:]], length)
        if placed is not None:
            held[number] = (*placed, data)
        else:
            assert sum(len(data) for *_, data in held.values()) + length > CAPACITY - len(held) * 400
        for _, view, expected in held.values():
            assert view == expected
    for start, view, _ in held.values():
        arena.free(start, len(view))
    assert arena.store([b"x" * CAPACITY], CAPACITY) is not None, "free runs grew together again"


async def test_a_full_store_is_retriable_and_recovers() -> None:
    store = MemoryStore(SystemClock(), capacity_bytes=CAPACITY)
    await store.put("a", [b"a" * 600], 0)
    with pytest.raises(StorageUnavailable, match="500 bytes do not fit, 600 are held"):
        await store.put("b", [b"b" * 500], 0)
    await store.delete(["a"])
    assert store.held_bytes == 0
    await store.put("b", [b"b" * 500], 0)
    assert await store.get("b") == b"b" * 500
    assert store.held_bytes == 500
