"""What a fetch asks for and what it gets: the words between the handler and the fetch path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.fetch.patch import Piece
from agent.fetch.pool import Entry
from metadata.model import Refusal, TopicId
from runtime.budget import Budget

PURPOSE = "response"


class PartitionFetch(NamedTuple):
    """One partition of a request: records from ``fetch_offset`` on, about ``byte_max`` bytes of them."""

    topic_id: TopicId
    partition: int
    fetch_offset: int
    byte_max: int


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """The request's own limits. ``byte_max`` also covers what the agent allows."""

    byte_max: int
    byte_min: int
    max_wait_ms: int


@dataclass(slots=True)
class PartitionFetched:
    """``problem`` None: ``chunks`` are whole record batches, the first one holding the offset asked for, or nothing.

    Offsets are -1 with a problem.
    """

    high_watermark: int = -1
    log_start_offset: int = -1
    problem: Refusal | Exception | None = None
    chunks: list[Piece] | tuple[()] = ()
    byte_length: int = 0
    zstd: bool = False


class Fetched:
    """An answer's partitions, in the request's order. The chunks are borrowed until :meth:`release`."""

    __slots__ = ("_budget", "_held_bytes", "_pins", "_released", "partitions")

    def __init__(self, partitions: list[PartitionFetched], pins: list[Entry[Any]], budget: Budget) -> None:
        self.partitions = partitions
        self._pins = pins
        self._budget = budget
        self._held_bytes = 0
        self._released = False

    def hold(self, byte_length: int) -> None:
        """Count bytes that only this answer holds (its encoding, private copies). Cached ones are counted already."""
        assert not self._released
        self._held_bytes += byte_length
        self._budget.take(PURPOSE, byte_length)

    def release(self) -> None:
        """The answer was sent or given up: its bytes may go. Exactly once."""
        assert not self._released, "an answer is released once"
        self._released = True
        for entry in self._pins:
            entry.unpin()
        self._budget.give(PURPOSE, self._held_bytes)
