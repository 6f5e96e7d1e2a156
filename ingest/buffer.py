"""The open segment: what has come in since the last seal. Appending is O(1) and touches no payload byte."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingest.policy import SEGMENT_BATCHES_MAX
from ingest.segment import PartitionRun
from ingest.ticket import PendingBatch, Ticket
from metadata.model import TopicId

Waiters = tuple[list[Ticket], list[int]]
"""For each batch of a run, in order, the ticket and the index in it that the batch settles. Two lists, because a pair
for each batch would be one more object for the garbage collector to visit."""

BATCH_OVERHEAD_BYTES = 512
"""What a batch holds beside its payload (ticket, draft, views, footer row) until it has settled: measured on
CPython 3.11, rounded up. Without it, a flood of tiny batches would hold several times what the budget knows of."""


class OpenRun(PartitionRun):
    """A partition's batches in the open segment and who waits for each, in append order."""

    __slots__ = ("indexes", "tickets")

    def __init__(self, topic_id: TopicId, partition: int) -> None:
        super().__init__(topic_id, partition)
        self.tickets: list[Ticket] = []
        self.indexes: list[int] = []

    @property
    def waiters(self) -> Waiters:
        return self.tickets, self.indexes


class OpenSegment:
    """Collects batches by partition, in order of arrival within each. ``timer`` is its linger;
    ``charged_batches`` are those whose overhead the budget knows of."""

    __slots__ = ("batch_count", "byte_length", "charged_batches", "opened_at", "record_count", "runs", "timer")

    def __init__(self, opened_at: float, timer: asyncio.TimerHandle) -> None:
        self.opened_at = opened_at
        self.timer = timer
        self.runs: dict[tuple[TopicId, int], OpenRun] = {}
        self.byte_length = 0
        self.batch_count = 0
        self.record_count = 0
        self.charged_batches = 0

    def append_one(self, ticket: Ticket, batch: PendingBatch) -> None:
        """Take in the only batch of ``ticket``. The segment has room: it is sealed before it has none."""
        assert self.batch_count < SEGMENT_BATCHES_MAX
        key = (batch.topic_id, batch.partition)
        run = self.runs.get(key)
        if run is None:
            run = self.runs[key] = OpenRun(batch.topic_id, batch.partition)
        draft = batch.draft
        run.payloads.append(batch.payload)
        run.batches.append(draft)
        run.tickets.append(ticket)
        run.indexes.append(0)
        self.record_count += draft.record_count
        self.byte_length += draft.byte_length
        self.batch_count += 1

    def append(self, ticket: Ticket, batches: Sequence[PendingBatch], start: int, byte_max: int) -> int:
        """Take in ``batches[start:]``, the i-th of which settles the i-th of ``ticket``, until the segment has
        ``byte_max`` bytes or as many batches as it may; returns where it stopped, at least one further on.
        """
        runs = self.runs
        byte_length, record_count = self.byte_length, self.record_count
        index = start
        end = min(len(batches), start + SEGMENT_BATCHES_MAX - self.batch_count)
        while index < end:
            batch = batches[index]
            key = (batch.topic_id, batch.partition)
            run = runs.get(key)
            if run is None:
                run = runs[key] = OpenRun(batch.topic_id, batch.partition)
            draft = batch.draft
            run.payloads.append(batch.payload)
            run.batches.append(draft)
            run.tickets.append(ticket)
            run.indexes.append(index)
            index += 1
            record_count += draft.record_count
            byte_length += draft.byte_length
            if byte_length >= byte_max:
                break
        self.byte_length, self.record_count = byte_length, record_count
        self.batch_count += index - start
        return index
