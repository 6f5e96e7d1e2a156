"""Durable numbers that only grow. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from metadata.store.port import Change, CounterSaved


class Counters:
    """By name; 0 until they are raised."""

    def __init__(self, saved: Mapping[str, int]) -> None:
        self._values = dict(saved)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> int:
        return self._values.get(name, 0)

    def count(self, prefix: str) -> int:
        """How many have names with ``prefix``."""
        return sum(name.startswith(prefix) for name in self._values)

    def next(self, name: str, changes: list[Change]) -> int:
        """One more than ever before."""
        value = self.get(name) + 1
        self.raise_to(name, value, changes)
        return value

    def raise_to(self, name: str, value: int, changes: list[Change]) -> None:
        """Nothing happens when it is there already."""
        if value > self.get(name):
            self._values[name] = value
            changes.append(CounterSaved(name, value))
