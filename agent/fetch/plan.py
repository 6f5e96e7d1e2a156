"""Who gets how much of a Fetch answer: pure. Sizes in bytes.

Kafka's rules (KIP-74, ``ReplicaManager.readFromLog``): the answer stays under the request's limit and each partition
under its own, but at least one batch per *request* is sent even if larger than both, so that a consumer never
gets stuck. Partitions take turns at being served first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Want:
    """A partition with data: its limit, and per extent in order (expected bytes, bytes of memory to load it)."""

    byte_max: int
    extents: Sequence[tuple[int, int]]


def serving_order(count: int, turn: int) -> list[int]:
    """Indexes 0..count-1, rotated. Over successive turns starts are spread evenly, and no fixed stride of turns
    (two consumers fetching alternately) always starts at the same partition."""
    if count <= 1:
        return list(range(count))
    start = (turn * _GOLDEN % 2**64) * count >> 64
    return [*range(start, count), *range(start)]


def extents_to_load(wants: Sequence[Want], order: Sequence[int], byte_max: int, load_byte_max: int) -> list[int]:
    """For each want, how many of its extents to load for an answer of ``byte_max``.

    Loading stays under ``load_byte_max``, but for the very first extent.
    """
    counts = [0] * len(wants)
    left = byte_max
    load_left = load_byte_max
    nothing_yet = True
    for index in order:
        want = wants[index]
        limit = min(want.byte_max, left)
        taken = 0
        for expected, load in want.extents:
            if not nothing_yet and (taken >= limit or load > load_left):
                break
            counts[index] += 1
            taken += expected
            load_left -= load
            nothing_yet = False
        left -= min(taken, limit)
        if left <= 0 and not nothing_yet:
            break
    return counts


class AnswerLimit:
    """What is left of an answer while partitions are served in order."""

    __slots__ = ("_left", "_nothing_yet")

    def __init__(self, byte_max: int) -> None:
        self._left = byte_max
        self._nothing_yet = True

    def allowance(self, byte_max: int) -> int:
        """Bytes the next partition may have, given its own limit."""
        return max(0, min(byte_max, self._left))

    @property
    def at_least_one(self) -> bool:
        """Whether the next batch is sent even if it is larger than the allowance."""
        return self._nothing_yet

    def sent(self, byte_length: int) -> None:
        if byte_length:
            self._left -= byte_length
            self._nothing_yet = False
