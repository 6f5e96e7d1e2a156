"""Many deadlines, one heap: who is due, and when the next one is. Pure."""

from __future__ import annotations

import heapq

STALE_ENTRIES_MAX = 1_024
"""Entries that an earlier deadline has replaced are dropped when they come up, or when there are more of them than
this and than live ones."""


class Deadlines:
    """At most one deadline a key, in milliseconds; setting one only ever moves it earlier."""

    def __init__(self) -> None:
        self._by_key: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def set(self, key: str, deadline_ms: int) -> None:
        """``key`` is due at ``deadline_ms`` at the latest."""
        current = self._by_key.get(key)
        if current is not None and current <= deadline_ms:
            return
        self._by_key[key] = deadline_ms
        heapq.heappush(self._heap, (deadline_ms, key))
        if len(self._heap) > 2 * len(self._by_key) + STALE_ENTRIES_MAX:
            self._heap = [(live_ms, live) for live, live_ms in self._by_key.items()]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        self._by_key.clear()
        self._heap.clear()

    def next_ms(self) -> int | None:
        """The earliest deadline, None when there is none."""
        while self._heap and self._by_key.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int, count_max: int) -> list[str]:
        """Take out at most ``count_max`` keys whose deadline has come, the earliest first."""
        keys: list[str] = []
        while len(keys) < count_max and (deadline_ms := self.next_ms()) is not None and deadline_ms <= now_ms:
            _, key = heapq.heappop(self._heap)
            del self._by_key[key]
            keys.append(key)
        return keys
