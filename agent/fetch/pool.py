"""Bytes kept for later, least recently used first out, every one of them counted.

An :class:`Entry` is *pinned* by whoever uses it now: a response on its way out, a read in progress, a run whose
batches lie in it. Its bytes count against the budget until nobody pins it and the pool no longer keeps it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar, cast

from runtime.budget import Budget

PURPOSE = "cache"
PRESSED_SHARE = 0.5
"""While the budget is exhausted a pool keeps only this share of its capacity: clients' requests come first."""

T = TypeVar("T")


class Entry(Generic[T]):
    """A value of a pool. Made by :meth:`Pool.insert`."""

    __slots__ = ("_kept", "_key", "_pool", "_sources", "byte_length", "pins", "value")

    def __init__(
        self, pool: Pool, key: Hashable, value: T, byte_length: int, pins: int, sources: tuple[Entry[object], ...]
    ) -> None:
        self.value = value
        self.byte_length = byte_length
        self.pins = pins
        self._pool = pool
        self._key = key
        self._kept = True
        self._sources = sources

    def pin(self) -> None:
        """Keep the bytes (and their count) until :meth:`unpin`."""
        assert self._kept or self.pins > 0, "the entry is gone"
        self.pins += 1
        if self.pins == 1:
            self._pool.pinned_bytes += self.byte_length

    def unpin(self) -> None:
        """Undo one :meth:`pin`."""
        assert self.pins > 0, "unpinned more often than pinned"
        self.pins -= 1
        if self.pins == 0:
            self._pool.unpinned(self)


class Pool:
    """Entries by key, at most ``capacity_bytes`` of them unless they are pinned. One event loop.

    A pool with a ``lender`` may also use what the lender has free, and gives it back when the lender fills up.
    """

    def __init__(self, capacity_bytes: int, budget: Budget, lender: Pool | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self._lender = lender
        self._borrower: Pool | None = None
        if lender is not None:
            lender._borrower = self
        self.held_bytes = 0
        self.pinned_bytes = 0
        self._budget = budget
        self._entries: OrderedDict[Hashable, Entry[object]] = OrderedDict()

    @property
    def evictable_bytes(self) -> int:
        return self.held_bytes - self.pinned_bytes

    def get(self, key: Hashable) -> Entry[object] | None:
        """The entry, now the most recently used one; not pinned."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def contains(self, key: Hashable) -> bool:
        """Whether the key is kept; does not count as a use."""
        return key in self._entries

    def insert(
        self, key: Hashable, value: T, byte_length: int, pins: int, sources: Sequence[Entry[object]] = ()
    ) -> Entry[T]:
        """Keep ``value`` with ``pins`` pins of the caller; it pins its ``sources`` as long as it lives."""
        assert key not in self._entries, f"{key} is kept already"
        for source in sources:
            source.pin()
        entry = Entry(self, key, value, byte_length, pins, tuple(sources))
        self._entries[key] = cast("Entry[object]", entry)
        self.held_bytes += byte_length
        if pins:
            self.pinned_bytes += byte_length
        self._budget.take(PURPOSE, byte_length)
        self._shrink()
        if self._borrower is not None:
            self._borrower._shrink()
        return entry

    def drop(self, key: Hashable) -> None:
        """Keep it no longer; those who pin it may go on using it."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry._kept = False
            if entry.pins == 0:
                self._free(entry)

    def unpinned(self, entry: Entry[T]) -> None:
        """The last pin of ``entry`` is gone."""
        self.pinned_bytes -= entry.byte_length
        if not entry._kept:
            self._free(cast("Entry[object]", entry))
        self._shrink()

    def _shrink(self) -> None:
        """Drop unpinned entries, least recently used first, until the rest fits. A pinned one gets another round."""
        looks = len(self._entries)
        while self._entries and looks > 0 and self.held_bytes > self._allowed():
            looks -= 1
            key, entry = self._entries.popitem(last=False)
            if entry.pins:
                self._entries[key] = entry
                continue
            entry._kept = False
            self._free(entry)

    def _retire(self, entry: Entry[object]) -> None:
        if entry._kept:
            self._entries.move_to_end(entry._key, last=False)

    def _allowed(self) -> float:
        if self._budget.exhausted:
            return self.capacity_bytes * PRESSED_SHARE
        lender = self._lender
        return self.capacity_bytes + (max(0, lender.capacity_bytes - lender.held_bytes) if lender is not None else 0)

    def _free(self, entry: Entry[object]) -> None:
        self.held_bytes -= entry.byte_length
        self._budget.give(PURPOSE, entry.byte_length)
        sources, entry._sources = entry._sources, ()
        for source in sources:
            if source.pins == 1:
                # Its last user was the least recently used: so is it, wherever it stood while it was pinned.
                source._pool._retire(source)
            source.unpin()
