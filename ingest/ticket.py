"""What a produce request leaves with the ingest path, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from metadata.model import BatchCommitted, BatchDraft, TopicId
from storage.store import Chunk


class IngestFailed(Exception):
    """The segment could not be made durable or committed in time. Retriable; the outcome of the batch is unknown."""


class PendingBatch(msgspec.Struct, frozen=True, gc=False):
    """One validated record batch on its way into a segment.

    ``payload`` is the whole v2 batch (header included, base offset 0), borrowed from the request's frame. It never
    changes: the segment's chunks, which may be views of it, can outlive the ticket in the tail's cache. ``draft`` is
    what its header says. (A msgspec struct because one is made per batch: 0.3 µs instead of a dataclass's 1.5.)
    """

    topic_id: TopicId
    partition: int
    payload: Chunk
    draft: BatchDraft


class Ticket(Protocol):
    """Who waits for the batches of one request."""

    def settle(self, index: int, outcome: BatchCommitted | IngestFailed) -> None:
        """The i-th batch appended has its outcome; once for each batch, on the event loop. It must not raise."""


class ProduceTicket:
    """A :class:`Ticket` for any number of batches.

    ``outcomes[i]`` belongs to the i-th batch appended: :class:`BatchCommitted` once its segment committed (or
    the commit refused it), :class:`IngestFailed` if it could not be stored. When the last one is filled in,
    ``on_settled(ticket)`` is called, once, on the event loop; it must not raise.
    """

    __slots__ = ("on_settled", "outcomes", "remaining")

    def __init__(self, batch_count: int, on_settled: Callable[[ProduceTicket], None]) -> None:
        self.outcomes: list[BatchCommitted | IngestFailed | None] = [None] * batch_count
        self.remaining = batch_count
        self.on_settled = on_settled

    def settle(self, index: int, outcome: BatchCommitted | IngestFailed) -> None:
        assert self.outcomes[index] is None, "a batch settles once"
        self.outcomes[index] = outcome
        self.remaining -= 1
        if self.remaining == 0:
            self.on_settled(self)
